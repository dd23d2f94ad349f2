"""Hidden dimensions: the whole model in another basis, with fewer of its axes, before anything else is cut.

The basis comes from what the norms hand on (`calibration.spectrum`) and a method that orders directions;
`model.rotation` rewrites the checkpoint in it, and `cut.hidden` fits what is left to the untouched model. The result
is a checkpoint in the work area, which the passes after it open as any other.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.calibration.spectrum import Place, moments_of_stream
from secateur.config.recipe import Recipe
from secateur.cut.counts import dimension_step, kept_dimensions
from secateur.cut.hidden import ModelPair, Narrowed, fit_hidden
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.model.rotation import (
    check_rotatable,
    narrow_config,
    narrow_layer,
    narrow_surroundings,
    surrounding_names,
)
from secateur.model.save import block_file, fill, read_block, write_block, write_checkpoint
from secateur.model.streamed import StreamedModel
from secateur.pipeline.run import Run
from secateur.system import distributed
from secateur.workspace.folder import Area

BASIS = "basis.safetensors"


def check_hidden(recipe: Recipe, checkpoint: Checkpoint, planned: bool, dry_run: bool) -> None:
    """Refuses what can't be done, or can't be done like that.

    Raises:
        InputError: in one line.
    """
    if "hidden" not in recipe.sites:
        return
    check_rotatable(checkpoint)
    if planned:
        raise InputError("a plan holds no basis for the hidden dimensions; run the recipe without it")
    if dry_run:
        raise InputError(
            "what is cut after the hidden dimensions depends on them; leave out --dry-run, or site hidden"
        )
    if recipe.steps > 1 and recipe.sites == ("hidden",):
        raise InputError("hidden dimensions go at once; leave out --steps, or add other sites")
    if recipe.recover is not None and "hidden" in (recipe.recover.loss or {}):
        raise InputError("hidden states of different widths can't be compared in recover; use --loss logits")
    units, kept = int(checkpoint.config.hidden_size), kept_dimensions(recipe, checkpoint)
    step = dimension_step(recipe, checkpoint)
    if kept >= units:
        raise InputError(
            f"sparsity {recipe.sparsity_for('hidden'):g} takes none of {units} hidden dimensions; they go "
            f"{step} at a time, so give {step / units:.3g} or more"
        )
    narrow_config(checkpoint, kept)


def narrow_model(run: Run, work: Path, area: Area | None) -> Narrowed:
    """Writes the narrow model into the area of a step, on the first rank; every rank takes part and opens it.

    Args:
        work: where this rank's hidden states may spill.
        area: of the first rank; what an interrupted run has finished in it is used again.
    """
    if area is not None:
        area.blocks.mkdir(parents=True, exist_ok=True)
    known = _basis(run, work, area)
    vectors, scores = known.pop("vectors"), known.pop("scores").tolist()
    energies = {name: float(energy) for name, energy in known.items()}
    kept = kept_dimensions(run.recipe, run.checkpoint)
    if not distributed.share_object(area is not None and area.final.is_dir(), 0):
        Q = vectors[:, :kept].contiguous()
        config = narrow_config(run.checkpoint, kept)
        made = _cut(run, Q, config, area)
        if run.recipe.refit:
            made = _fitted(run, Checkpoint.open(made), Q, config, work, area)
        if area is not None:
            made.rename(area.final)
    narrow = Checkpoint.open(shared_path(area.final if area is not None else None))
    return Narrowed(narrow, len(vectors), kept, run.recipe.method_for("hidden").name, scores, energies)


def shared_path(folder: Path | None) -> Path:
    """The first rank's folder, on every rank."""
    return Path(distributed.share_object(str(folder.absolute()) if folder is not None else "", 0))


def _basis(run: Run, work: Path, area: Area | None) -> dict[str, Tensor]:
    """`vectors` (d, d), their `scores` (d,), and for each place the share of its energy that the kept ones carry."""
    file = area.work / BASIS if area is not None else None
    found = load_file(file) if file is not None and file.exists() else None
    if not distributed.share_object(found is not None, 0):
        with run.monitor.stage("look at hidden dimensions", run.checkpoint.layers) as step:
            places = moments_of_stream(run.streamed, run.calibration.tokens, step, run.budget(), work)
        method = run.recipe.method_for("hidden")
        assert method.basis is not None
        chosen = method.basis(torch.stack([place.moment for place in places]).mean(0), run.recipe.seed)
        Q = chosen.vectors[:, : kept_dimensions(run.recipe, run.checkpoint)]
        found = {"vectors": chosen.vectors, "scores": chosen.scores} | _energies(places, Q)
        if file is not None and area is not None:
            partial = file.with_suffix(".partial")
            save_file({name: tensor.contiguous() for name, tensor in found.items()}, partial)
            partial.rename(file)
            area.worth_keeping()
    # One rank's, to the last bit: eigenvectors turn with rounding.
    return distributed.share_tensors(found if area is not None else None, 0, torch.device("cpu"))


def _energies(places: list[Place], Q: Tensor) -> dict[str, Tensor]:
    return {p.name: ((p.moment @ Q) * Q).sum() / p.moment.diagonal().sum() for p in places}


def _cut(run: Run, Q: Tensor, config: dict[str, Any], area: Area | None) -> Path:
    """The rotated and cut checkpoint, not fitted yet."""
    checkpoint, folder = run.checkpoint, None
    with run.monitor.stage("narrow", checkpoint.layers) as step:
        if area is not None:
            folder, blocks = _empty(area.work / "cut"), _empty(area.work / "cut-blocks")
            plain = StreamedModel(checkpoint, torch.device("cpu"), torch.float32)
            for index in range(checkpoint.layers):
                layer = plain.load(index)
                tensors = narrow_layer(layer, checkpoint.family, Q)
                write_block(blocks, fill(layer, tensors, torch.float32), checkpoint, index)
                step(f"layer {index}")

            def around(empty: bool) -> dict[str, Tensor]:
                return narrow_surroundings(plain.surroundings(empty), checkpoint, Q)

            write_checkpoint(folder, plain, blocks, range(checkpoint.layers), config, around)
            shutil.rmtree(blocks)
    return shared_path(folder)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _with_head(streamed: StreamedModel, head: Tensor, empty: bool) -> dict[str, Tensor]:
    """What surrounds the layers, with another head."""
    tensors = streamed.surroundings(empty)
    name = surrounding_names(streamed.checkpoint)[2]
    return tensors if empty else {**tensors, name: head.to(tensors[name])}


def _fitted(run: Run, narrow: Checkpoint, Q: Tensor, config: dict[str, Any], work: Path, area: Area | None) -> Path:
    """The narrow checkpoint fitted to the untouched model; the one that isn't is removed."""
    streamed = StreamedModel(narrow, run.streamed.device, run.streamed.dtype)
    folder = _empty(area.work / "fitted") if area is not None else None

    def finished(index: int) -> nn.Module | None:
        there = area is not None and block_file(area.blocks, index).exists()
        if not distributed.share_object(there, 0):
            return None
        tensors = read_block(area.blocks, index) if area is not None else None
        shared = distributed.share_tensors(tensors, 0, streamed.device)
        return fill(streamed.template(index), shared, streamed.dtype).to(streamed.device)

    def edited(layer: nn.Module, index: int) -> None:
        if area is not None:
            write_block(area.blocks, layer, narrow, index)
            area.worth_keeping()

    with run.monitor.stage("fit hidden dimensions", narrow.layers) as step:
        pair = ModelPair(streamed, run.streamed, Q)
        head = fit_hidden(pair, run.calibration.tokens, finished, edited, step, run.budget(), work)
        if area is not None and folder is not None:
            around = partial(_with_head, streamed, head)
            write_checkpoint(folder, streamed, area.blocks, range(narrow.layers), config, around)
            shutil.rmtree(area.blocks)
            shutil.rmtree(narrow.path)
    run.streamed.release()
    return shared_path(folder)
