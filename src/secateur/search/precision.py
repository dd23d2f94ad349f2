"""The number format of an export to GGUF, a form of the whole model: bytes are the file's, matrices are rounded as
it would have them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from torch import nn

from secateur.allocation.job import Job, ProgressStep
from secateur.config.export import make_export
from secateur.export.gguf.export import header_bytes
from secateur.export.gguf.rounded import Rounded, entry_bytes, stored_bytes
from secateur.search.form import Form, size_measures
from secateur.search.space import Piece, Space, by_piece
from secateur.search.trial import Against, Trials
from secateur.search.wanted import Measures


def number_formats(kinds: Sequence[str], measures: Measures, job: Job, space: Space) -> list[Form]:
    """A form for each format, the finest first.

    Raises:
        InputError, UnsupportedModelError: no such file is made of the model.
    """
    found = []
    for kind in sorted(kinds, key=entry_bytes, reverse=True):
        own = size_measures(measures, *_bytes(kind, job, space))
        export = make_export({"to": "gguf", "type": kind})
        found.append(Form(kind, own, space, partial(_trials, job, kind), export))
    return found


def _trials(
    job: Job, kind: str, folder: Path, scratch: Path, against: Against, step: ProgressStep
) -> AbstractContextManager[Trials]:
    rounded = Rounded(job.streamed.checkpoint, job.streamed.device, job.streamed.dtype, kind)
    return Trials.of(job._replace(streamed=rounded, step=step), folder, scratch, against)


def _bytes(kind: str, job: Job, space: Space) -> tuple[float, dict[Piece, float]]:
    """Of the file of the untouched model, and what each piece saves of them."""
    streamed, checkpoint = job.streamed, job.streamed.checkpoint
    whole = header_bytes(checkpoint, kind) + stored_bytes(streamed.surroundings(empty=True).items(), kind, None)

    def of_layer(layer: nn.Module, index: int) -> float:
        return stored_bytes(layer.named_parameters(), kind, checkpoint.family)

    layers, saves = by_piece(job, space, of_layer)
    return whole + layers, saves
