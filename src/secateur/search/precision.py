"""The number format of an export: one choice for the whole model, so each format has candidates of its own.

A format saves bytes of everything that is left, in proportion, and loses something before anything goes. So pieces
and what each costs alone are those of the model as it is, and what they save are bytes of a GGUF file; candidates are
put together, rounded as the file would have them, and measured against the untouched model. The finest format comes
first; one that loses more alone than the best candidate so far is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from secateur.allocation.job import Job
from secateur.config.wishes import Wish
from secateur.errors import InputError
from secateur.export.gguf.export import header_bytes
from secateur.export.gguf.rounded import Rounded, entry_bytes, stored_bytes
from secateur.model.checkpoint import Checkpoint
from secateur.report.schema.search import FormatFacts
from secateur.search.found import Found
from secateur.search.prepared import Remembered, beyond, one_by_one
from secateur.search.space import LAYER, Piece, Space, cut_shape
from secateur.search.trial import Against, Evaluate, Trials
from secateur.search.wanted import Measures, limits_of, narrowed
from secateur.workspace.journal import Journal


def measures_by_format(kinds: Sequence[str], measures: Measures, job: Job, space: Space) -> dict[str, Measures]:
    """For each format what models take as such a file, the finest format first.

    Raises:
        InputError, UnsupportedModelError: no such file is made of the model.
    """
    found = {}
    kept = {piece: saved - measures.saves["size"][piece] for piece, saved in measures.saves["memory"].items()}
    cache = measures.whole["memory"] - measures.whole["size"]
    for kind in sorted(kinds, key=entry_bytes, reverse=True):
        whole, saves = _bytes(kind, job, space)
        own = Measures(
            {**measures.whole, "size": whole, "memory": whole + cache},
            {**measures.saves, "size": saves, "memory": {piece: saves[piece] + kept[piece] for piece in saves}},
        )
        found[kind] = narrowed(own, measures)
    return found


def _bytes(kind: str, job: Job, space: Space) -> tuple[float, dict[Piece, float]]:
    """Of the file of the untouched model, and what each piece saves of them."""
    streamed, checkpoint = job.streamed, job.streamed.checkpoint
    whole = header_bytes(checkpoint, kind) + stored_bytes(streamed.surroundings(empty=True).items(), kind, None)
    saves: dict[Piece, float] = {}
    for index in range(checkpoint.layers):
        before = _layer_bytes(streamed.template(index), kind, checkpoint)
        whole += before
        for piece in (piece for piece in space.saves if piece.layer == index):
            layer, left = streamed.template(index), 0.0
            if piece.kind != LAYER:
                cut_shape(job, layer, piece)
                left = _layer_bytes(layer, kind, checkpoint)
            saves[piece] = before - left
    return whole, saves


def _layer_bytes(layer: nn.Module, kind: str, checkpoint: Checkpoint) -> float:
    return stored_bytes(layer.named_parameters(), kind, checkpoint.family)


def check_reachable(wishes: Sequence[Wish], every: Sequence[Measures], space: Space) -> None:
    """Refuses wishes that can't be kept in any format.

    Raises:
        InputError: as `limits_of`, of the last one.
    """
    for place, measures in enumerate(every):
        try:
            limits_of(wishes, measures, space)
        except InputError:
            if place == len(every) - 1:
                raise
        else:
            return


def best_format(
    job: Job,
    wishes: Sequence[Wish],
    formats: Mapping[str, Measures],
    against: Against,
    folders: tuple[Path, Path],
    journal: Journal,
    within: Callable[[Measures, Evaluate], Found],
) -> Found:
    """What is found in the format in which the best candidate loses least.

    Args:
        formats: see `measures_by_format`.
        against: the untouched model.
        folders: of the pieces, and for hidden states that exceed the memory.
        within: gives what is found with such measures of candidates' costs.

    Raises:
        InputError: no format has a candidate that keeps the wishes, or in the best one nothing needs to go.
    """
    best: Found | None = None
    facts: list[FormatFacts] = []
    refused: InputError | None = None
    for kind, measures in formats.items():
        rounded = Rounded(job.streamed.checkpoint, job.streamed.device, job.streamed.dtype, kind)
        own = job._replace(streamed=rounded, step=lambda text: None)
        with Trials.of(own, *folders, against) as trials:
            evaluate: Evaluate = Remembered.of(one_by_one(trials.evaluate), journal, f"-{kind}")
            [alone] = evaluate([()])
            size = measures.left("size", ())
            facts.append({"type": kind, "bytes": size, "kl": alone, "best": None, "chosen": False})
            if best is not None and alone >= best.divergence:
                continue
            try:
                other = within(measures, partial(beyond, evaluate, alone))
            except InputError as error:  # nothing keeps the wishes in this one
                refused = error
                continue
        other = replace(other.above(alone), format=kind)
        facts[-1]["best"] = other.divergence
        best = other if best is None or other.divergence < best.divergence else best
    if best is None:
        assert refused is not None
        raise refused
    if not best.best:
        told = ", ".join(wish.text for wish in wishes)
        raise InputError(
            f"wishes {told}: kept as {best.format} with nothing gone, at a KL of {best.divergence:.2g}; use "
            f"secateur export MODEL --to gguf --type {best.format}"
        )
    for fact in facts:
        fact["chosen"] = fact["type"] == best.format
    return replace(best, formats=tuple(facts))
