"""The library's front door for researchers: load a model, see its sites, gather statistics, save the result.

The example prunes the model that comes with the package to the 2:4 pattern. A weight's score is its size times the
root mean square of its input over the calibration tokens (Wanda, Sun et al. 2023, https://arxiv.org/abs/2306.11695).

>>> import tempfile
>>> from pathlib import Path
>>> import secateur
>>> scratch = tempfile.TemporaryDirectory()
>>> text = Path(scratch.name, "fox.txt")
>>> characters = text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
>>> tokens = secateur.calibrate("embedded", str(text), samples=4, length=64).tokens
>>> tokens.shape
torch.Size([4, 64])
>>> model = secateur.open_for_walk("embedded", device="cpu")
>>> pattern = secateur.Pattern.parse("2:4")
>>> with secateur.save(model, Path(scratch.name, "out")) as put:
...     for block in secateur.walk(model, tokens):
...         for linear, moments in block.statistics(frozenset({"rms"})):
...             score = linear.weight.abs() * moments.rms
...             linear.weight = linear.weight * pattern.mask(score)
...         put(block)
>>> pruned = secateur.load(Path(scratch.name, "out"), device="cpu")
>>> float((pruned.model.layers[0].mlp.up_proj.weight == 0).float().mean())
0.5
>>> scratch.cleanup()
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
from secateur.evaluation.loading import load as load_for_evaluation
from secateur.evaluation.own_text import SELF, own_calibration
from secateur.model.checkpoint import Checkpoint
from secateur.model.extras import check_extras
from secateur.model.hub import local_folder
from secateur.model.result_config import new_config
from secateur.model.save import write_block, write_checkpoint
from secateur.model.sites import Site, sites_of
from secateur.model.streamed import StreamedModel
from secateur.model.uneven import Widths, layer_widths
from secateur.numerics.keep_counts import keep_count as keep_counts  # noqa: F401  the public name
from secateur.pipeline.calibration import calibration_for
from secateur.system.device import resolve_device, resolve_dtype
from secateur.workspace.folder import MARK, Workspace
from secateur.workspace.ownership import names_for_report


def load(path: str | Path, device: str = "auto", dtype: str = "auto", runtime: str = "auto") -> Any:
    """Loads a checkpoint folder as a `transformers` model, in eval mode and without gradients.

    It also loads what `from_pretrained` alone can't: layers of uneven width, and the weights of `secateur compress`.
    Code that comes with a checkpoint is never run.

    Args:
        path: a folder, `embedded` (the model that comes with the package), or a hub id.
        device: `auto` (the first CUDA device, else the CPU), `cpu`, `cuda:1`, `mps`, or what torch has here.
        dtype: `float32`, `bfloat16` or `float16`; `auto` is float32 on a CPU, else what the checkpoint holds.
            Compressed values stay as they are stored.
        runtime: how compressed weights are multiplied. `auto`: each shape of matrix in the form that is faster here,
            measured once; `compressed`: all from the packed form; `dense`: all unpacked on loading; `gpu`: as
            `auto`, but on a CUDA device, by kernels that no card has run yet (docs/gpu.md).

    Raises:
        InputError: no such folder, damaged or incomplete weights, a device or dtype that can't be had, or
            `runtime="compressed"` or `"gpu"` for weights that aren't compressed.
        UnsupportedModelError: `transformers` doesn't know the architecture.
    """
    return load_for_evaluation(path, device, dtype, encoders=True, runtime=runtime).model


def sites(checkpoint: Checkpoint | str | Path) -> list[Site]:
    """Lists what can be removed from a checkpoint: every site of every layer, from layer 0 on. No weights are read.

    Args:
        checkpoint: an open one, a folder, `embedded`, or a hub id.

    Raises:
        InputError: the folder is no whole checkpoint of safetensors.
        UnsupportedModelError: an architecture that can't be cut, or weights quantised in a way that isn't read.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(local_folder(checkpoint))
    layers = opened.template.get_submodule(opened.family.layers)
    return [
        site
        for index, layer in enumerate(layers.children())
        for site in sites_of(layer, opened.family, index, opened.head_dim)
    ]


def open_for_walk(checkpoint: Checkpoint | str | Path, device: str = "auto", dtype: str = "auto") -> StreamedModel:
    """Opens a checkpoint whose layers are then read from disk one at a time; hand it to `walk` and to `save`.

    Args:
        checkpoint: an open one, a folder, `embedded`, or a hub id.
        device: where layers and activations are computed; `auto` is the first CUDA device, else the CPU.
        dtype: of the computation; `auto` is float32 on a CPU, else what the checkpoint holds. Weights are saved in
            the dtype that they had on disk, whatever this is.

    Raises:
        InputError: the folder is no whole checkpoint of safetensors, or holds tensors of layers that the model
            doesn't use; or the device or dtype can't be had.
        UnsupportedModelError: an architecture that can't be cut, or weights quantised in a way that isn't read.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(local_folder(checkpoint))
    check_extras(opened)
    where = resolve_device(device)
    return StreamedModel(opened, where, resolve_dtype(dtype, where, opened.config))


def calibrate(
    checkpoint: Checkpoint | str | Path, source: str, samples: int = 128, length: int = 512, seed: int = 0
) -> Calibration:
    """Draws token sequences from a text, as every run of `prune` does with these settings.

    Args:
        checkpoint: the model whose tokenizer and vocabulary count: an open one, a folder, `embedded`, or a hub id.
        source: a .jsonl, .txt or .parquet file, `stdlib` (text of the running Python installation), a data set of the
            hub, several with their shares (`a.jsonl:0.7,b.jsonl:0.3`), or `self`: text that the model writes itself.
        samples: how many sequences; there are fewer where the text is too short.
        length: tokens of each.
        seed: of the draw; the same on every machine, but for `self`.

    Returns:
        `tokens`, int64 (samples, length); `held_out`, up to 32 other sequences of the same source, or one for each
        source where there are more; and the hashes of both text and tokens.

    Raises:
        InputError: a source that can't be read or gives less than one sequence, or a tokenizer that doesn't fit.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(local_folder(checkpoint))
    if source == SELF:
        return own_calibration(opened.path, samples, length, seed, "auto")
    return calibration_for(opened, source, samples, length, seed)


@contextmanager
def save(streamed: StreamedModel, out: str | Path, overwrite: bool = False) -> Iterator[Callable[[Block], None]]:
    """Collects edited blocks, and writes a checkpoint to `out` when the `with` block ends; nothing if it fails.

    Gives a function to call with each block of a `walk`, after its edits and in order. Each block is written to a
    work area in `out` at once, in the dtype that it had on disk. Layers that are never given are left out of the
    result.

    Args:
        streamed: what the blocks came from; gives embeddings, head, configuration and tokenizer.
        out: a new or empty folder.
        overwrite: an earlier result of Secateur in `out` may be replaced.

    Raises:
        InputError: `out` isn't empty, holds files that Secateur didn't make, or lies in the folder that is read.
        ResourceError: the disk is full.
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
