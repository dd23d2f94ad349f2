"""The library's front door for researchers: load a model, see its sites, gather statistics, save the result.

outer = secateur.open_for_walk("path/to/model")
tokens = secateur.calibrate("path/to/model", "general.jsonl").tokens
with secateur.save(outer, "out") as put:
    for block in secateur.walk(outer, tokens):
        for linear, moments in block.statistics(frozenset({"rms"})):
            score = linear.weight.abs() * moments.rms
            linear.weight = linear.weight * secateur.Pattern.parse("2:4").mask(score)
        put(block)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from secateur._version import __version__
from secateur.calibration.walk import Block, round_to_stored
from secateur.data.batches import Calibration
from secateur.data.mixture import calibration_of
from secateur.evaluation.loading import load as load_for_evaluation
from secateur.evaluation.own_text import SELF, own_calibration
from secateur.model.checkpoint import Checkpoint
from secateur.model.hub import local_folder
from secateur.model.result_config import new_config
from secateur.model.save import write_block, write_checkpoint
from secateur.model.sites import Site, sites_of
from secateur.model.streamed import StreamedModel
from secateur.model.uneven import Widths, layer_widths
from secateur.numerics.keep_counts import keep_count as keep_counts  # noqa: F401  the public name
from secateur.system.device import resolve_device, resolve_dtype
from secateur.workspace.folder import MARK, Workspace
from secateur.workspace.ownership import names_for_report


def load(path: str | Path, device: str = "auto", dtype: str = "auto", runtime: str = "auto") -> Any:
    """A checkpoint folder as a `transformers` model in eval mode, without remote code; also uneven, also compressed.

    Args:
        dtype: `auto` is float32 on a CPU, else what the checkpoint holds. Compressed values stay as they are stored.
        runtime: how compressed weights run. `auto`: each shape of matrix in the form that is faster here, measured
            once; `compressed`: all from the packed form; `dense`: all unpacked.
    """
    return load_for_evaluation(path, device, dtype, encoders=True, runtime=runtime).model


def sites(checkpoint: Checkpoint | str | Path) -> list[Site]:
    """Every site of every layer of a checkpoint; no weights are read."""
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(local_folder(checkpoint))
    layers = opened.template.get_submodule(opened.family.layers)
    return [
        site
        for index, layer in enumerate(layers.children())
        for site in sites_of(layer, opened.family, index, opened.head_dim)
    ]


def open_for_walk(checkpoint: Checkpoint | str | Path, device: str = "auto", dtype: str = "auto") -> StreamedModel:
    """A checkpoint opened for streaming: see `walk`."""
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(local_folder(checkpoint))
    where = resolve_device(device)
    return StreamedModel(opened, where, resolve_dtype(dtype, where, opened.config))


def calibrate(
    checkpoint: Checkpoint | str | Path, source: str, samples: int = 128, length: int = 512, seed: int = 0
) -> Calibration:
    """Token sequences of text, by the project's protocol.

    Args:
        source: one source, several with their shares (`a.jsonl:0.7,b.jsonl:0.3`), or `self`: what the model writes.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(local_folder(checkpoint))
    vocabulary = opened.config.vocab_size
    if source == SELF:
        return own_calibration(opened.path, samples, length, seed, "auto")
    return calibration_of(source, opened.tokenizer, samples, length, seed, vocabulary)


@contextmanager
def save(streamed: StreamedModel, out: str | Path, overwrite: bool = False) -> Iterator[Callable[[Block], None]]:
    """Collects edited blocks and writes a checkpoint when the `with` block ends; nothing if it fails.

    Gives a function to call with each block after its edits, in order. Blocks that are never given are dropped.
    """
    checkpoint = streamed.checkpoint
    kept: list[int] = []
    widths: dict[int, Widths] = {}
    with Workspace(out, overwrite, inputs=[checkpoint.path]).open() as workspace:

        def put(block: Block) -> None:
            round_to_stored(block.layer, streamed, block.index)
            write_block(workspace.blocks, block.layer, checkpoint, block.index)
            widths[len(kept)] = layer_widths(block.layer, checkpoint.family, checkpoint.config, checkpoint.head_dim)
            kept.append(block.index)

        yield put
        with torch.no_grad():
            write_checkpoint(workspace.final, streamed, workspace.blocks, kept, new_config(checkpoint, kept, widths))
        # The mark by which a later run knows what it may replace.
        mark = {"secateur": __version__, "files": names_for_report(workspace.final)}
        (workspace.final / MARK).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
        workspace.deliver()
