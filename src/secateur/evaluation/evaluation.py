"""The whole evaluation of a model, alone or against another one, as one dictionary ready for JSON."""

from __future__ import annotations

from pathlib import Path

import torch

from secateur.data.corpus import Corpus
from secateur.data.documents import load_corpus
from secateur.data.sources import split_specs
from secateur.evaluation.loading import Loaded, load
from secateur.evaluation.measure import measure_in_turns
from secateur.evaluation.perplexity import Score, perplexity
from secateur.evaluation.windows import evaluation_length, windows
from secateur.model.files import read_index
from secateur.report.schema.figures import (
    Described,
    Evaluated,
    Figures,
    LossFigures,
    Ratios,
    SpeedFigures,
    TextFigures,
)
from secateur.report.schema.recovery import ModelState
from secateur.runtime.folder import Reader, is_compressed
from secateur.runtime.linear import count_parameters
from secateur.system.device import dtype_name
from secateur.system.display import display


def evaluate(
    model_dir: str | Path,
    data: str,
    against: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    length: int | None = None,
    speed: bool = True,
    quiet: bool = True,
) -> Evaluated:
    """Measures a model on held-out text: perplexity, size and speed, alone or against another model.

    Args:
        model_dir: a folder, also a compressed one, `embedded`, or a hub id.
        data: a .jsonl, .txt or .parquet file, `stdlib`, a data set of the hub, or several of them separated by
            commas. The figures at the top are of the first one, `sets` has them all.
        against: a reference model, evaluated on the same text.
        device: `auto` (the first CUDA device, else the CPU), `cpu`, `cuda:1`, `mps`, or what torch has here.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: float32 on a CPU, else what the checkpoint holds.
        length: tokens of a window. Default: the context (the shorter of both models'), at most 4096.
        speed: False leaves out tokens a second and peak memory (those keys are None), which need a process each, and
            are measured in turns.
        quiet: no progress display.

    Returns:
        model, data, data_sha256, perplexity, bits_per_byte, tokens, windows, length, sets, parameters (tied ones
        once), nonzero_parameters, bytes_on_disk (weight files), prefill_tokens_per_s, decode_tokens_per_s,
        prefill_range, decode_range, prompt_tokens, new_tokens, speed_runs, peak_memory_bytes,
        memory_before_model_bytes, load_before, cores, device, dtype, threads, notes; with `against` also kl (nats a
        token; None with a note where the two don't share their tokens), reference (the same keys for the other
        model) and ratios (this model / reference).

    Raises:
        InputError: data, model, device or dtype can't be used; nothing is measured then.
        UnsupportedModelError: `transformers` doesn't know the architecture.
    """
    with display("evaluate", quiet):
        return _evaluate(model_dir, data, against, device, dtype, length, speed)


def _evaluate(
    model_dir: str | Path,
    data: str,
    against: str | Path | None,
    device: str,
    dtype: str,
    length: int | None,
    speed: bool,
) -> Evaluated:
    corpora = [load_corpus(spec, split="held_out") for spec in split_specs(data)]
    own = load(model_dir, device, dtype)
    other = None if against is None else load(against, device, dtype)
    sides = [side for side in (own, other) if side is not None]
    tokens = min(evaluation_length(side.model.config, length) for side in sides)
    notes = [note for corpus in corpora for note in corpus.notes]
    sets: list[dict[str, TextFigures]] = [{} for _ in sides]
    for corpus in corpora:
        for part, scored in zip(sets, _score(corpus, own, other, tokens, notes), strict=True):
            part[corpus.name] = scored
    described = [_describe(side, part, tokens) for side, part in zip(sides, sets, strict=True)]
    del own, other, sides  # what is measured next shall have the machine's memory
    paths = [found["model"] for found in described]
    measured = measure_in_turns(paths, device, dtype, tokens) if speed else [_unmeasured() for _ in paths]
    figures: list[Figures] = [{**found, **timed} for found, timed in zip(described, measured, strict=True)]
    result: Evaluated = {**figures[0], "notes": notes}
    if against is not None:
        result["reference"] = figures[1]
        result["ratios"] = _ratios(*figures)
    return result


def _score(corpus: Corpus, own: Loaded, other: Loaded | None, length: int, notes: list[str]) -> list[TextFigures]:
    mine = windows(corpus, own.tokenizer, length, _vocab(own))
    if other is None:
        return [figures_of(corpus, perplexity(own.model, mine, quiet=True)[0])]
    theirs = windows(corpus, other.tokenizer, length, _vocab(other))
    same = [window.ids for window in mine] == [window.ids for window in theirs]
    if same and _vocab(own) == _vocab(other):
        score, reference = perplexity(own.model, mine, other.model, quiet=True)
        assert reference is not None, "a reference was given"
        beside: TextFigures = {**figures_of(corpus, score), "kl": score.kl}
        return [{**beside, "difference_stderr": score.difference_stderr}, figures_of(corpus, reference)]
    notes.append(f"{corpus.name}: the models split the text into different tokens: no KL, compare bits per byte")
    score, reference = (perplexity(side.model, w, quiet=True)[0] for side, w in ((own, mine), (other, theirs)))
    return [{**figures_of(corpus, score), "kl": None}, figures_of(corpus, reference)]


def figures_of(corpus: Corpus, score: Score) -> TextFigures:
    return {
        "data": corpus.name,
        "data_sha256": corpus.sha256,
        "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
        "tokens": score.tokens,
        "windows": score.windows,
    }


def _describe(side: Loaded, sets: dict[str, TextFigures], length: int) -> Described:
    total, nonzero = count_parameters(side.model)
    first: TextFigures = {**next(iter(sets.values()))}
    first.pop("difference_stderr", None)
    return {
        "model": side.path,
        **first,
        "sets": sets,
        "length": length,
        "parameters": total,
        "nonzero_parameters": nonzero,
        "bytes_on_disk": bytes_on_disk(side.path),
        "device": str(side.device),
        "dtype": dtype_name(side.dtype),
        "threads": torch.get_num_threads(),
    }


def bytes_on_disk(path: str | Path) -> int:
    """Size of the files that hold a folder's weights."""
    folder = Path(path)
    if is_compressed(folder):
        return Reader(folder).bytes_on_disk
    return sum(file.stat().st_size for file in set(read_index(folder).values()))


def _vocab(side: Loaded) -> int:
    return int(side.model.config.get_text_config().vocab_size)


def _unmeasured() -> SpeedFigures:
    return {
        "prefill_tokens_per_s": None,
        "decode_tokens_per_s": None,
        "prefill_range": None,
        "decode_range": None,
        "prompt_tokens": None,
        "new_tokens": None,
        "speed_runs": None,
        "peak_memory_bytes": None,
        "memory_before_model_bytes": None,
        "load_before": None,
        "cores": None,
    }


def _ratios(own: Figures, other: Figures) -> Ratios:
    return {
        "perplexity": _ratio(own["perplexity"], other["perplexity"]),
        "bits_per_byte": _ratio(own["bits_per_byte"], other["bits_per_byte"]),
        "parameters": _ratio(own["parameters"], other["parameters"]),
        "nonzero_parameters": _ratio(own["nonzero_parameters"], other["nonzero_parameters"]),
        "bytes_on_disk": _ratio(own["bytes_on_disk"], other["bytes_on_disk"]),
        "prefill_tokens_per_s": _ratio(own["prefill_tokens_per_s"], other["prefill_tokens_per_s"]),
        "decode_tokens_per_s": _ratio(own["decode_tokens_per_s"], other["decode_tokens_per_s"]),
        "peak_memory_bytes": _ratio(own["peak_memory_bytes"], other["peak_memory_bytes"]),
    }


def _ratio(own: float | None, reference: float | None) -> float | None:
    return own / reference if own is not None and reference else None


def state_figures(name: str, figures: LossFigures) -> ModelState:
    """One row of the report's `recovery.states`: what one of the models is worth."""
    sets = {text: one["perplexity"] for text, one in figures["sets"].items()}
    return {
        "state": name,
        "perplexity": figures["perplexity"],
        "bits_per_byte": figures["bits_per_byte"],
        "sets": sets,
    }
