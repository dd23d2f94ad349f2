"""Hidden dimensions: the whole model in another basis, with fewer of its axes, before anything else is cut.

The basis comes from what the norms hand on (`calibration.spectrum`) and a method that orders directions;
`model.rotation` rewrites the checkpoint in it, and `cut.hidden` fits what is left to the untouched model. The result
is a checkpoint in the work area, which the passes after it open as any other.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.calibration.spectrum import Place, moments_of_stream
from secateur.config.configuration import Configuration
from secateur.config.recipe import Recipe
from secateur.cut.counts import dimension_step, kept_dimensions
from secateur.cut.hidden import ModelPair, Narrowed, fit_hidden
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.model.counting import share_of_zeros
from secateur.model.json_files import Json
from secateur.model.rotation import (
    check_rotatable,
    narrow_config,
    narrow_layer,
    narrow_surroundings,
    surrounding_names,
)
from secateur.model.save import fill, write_block, write_checkpoint
from secateur.model.streamed import StreamedModel
from secateur.numerics.support import PRUNED
from secateur.pipeline.inputs import Inputs, Services
from secateur.pipeline.store import Store
from secateur.system import distributed
from secateur.workspace.ownership import discard

FILLED = (
    "the model's matrices hold zeros ({share} in its first layer), and cutting hidden dimensions fills them: what is "
    "left is written in another basis; cut weights after this, not before"
)
BASIS, CUT, FITTED = "basis.safetensors", "cut", "fitted"


def check_hidden(recipe: Recipe, config: Configuration, checkpoint: Checkpoint, dry_run: bool) -> None:
    """Refuses what can't be done, or can't be done like that.

    Raises:
        InputError: in one line.
    """
    if "hidden" not in recipe.sites:
        return
    check_rotatable(checkpoint)
    if dry_run:
        raise InputError(
            "what is cut after the hidden dimensions depends on them; leave out --dry-run, or site hidden"
        )
    if recipe.steps > 1 and recipe.sites == ("hidden",):
        raise InputError("hidden dimensions go at once; leave out --steps, or add other sites")
    if recipe.recover is not None and "hidden" in (recipe.recover.loss or {}):
        raise InputError("hidden states of different widths can't be compared in recover; use --loss logits")
    units, kept = int(checkpoint.config.hidden_size), kept_dimensions(config, checkpoint)
    step = dimension_step(config, checkpoint)
    if kept >= units:
        raise InputError(
            f"sparsity {config.sparsities['hidden']:g} takes none of {units} hidden dimensions; they go "
            f"{step} at a time, so give {step / units:.3g} or more"
        )
    narrow_config(checkpoint, kept)


def filled_zeros(recipe: Recipe, checkpoint: Checkpoint) -> list[str]:
    """What to say beforehand to somebody who cuts hidden dimensions of a model whose weights were pruned."""
    if "hidden" not in recipe.sites:
        return []
    share = share_of_zeros(checkpoint, 0)
    return [FILLED.format(share=f"{100 * share:.0f}%")] if share >= PRUNED else []


def narrow_model(inputs: Inputs, services: Services) -> Narrowed:
    """Writes the narrow model into the area of a step of its own, on the first rank; every rank takes part and opens
    it. What an interrupted run has finished in it is used again."""
    store = services.store.step(0, {})
    distributed.on_first(lambda: store.area.blocks.mkdir(parents=True, exist_ok=True))
    known = store.tensors(BASIS, lambda: _basis(inputs, services))
    vectors, scores = known.pop("vectors"), known.pop("scores").tolist()
    energies = {name: float(energy) for name, energy in known.items()}
    kept = kept_dimensions(inputs.config, inputs.checkpoint)
    if not distributed.from_first(store.area.final.is_dir):
        Q = vectors[:, :kept].contiguous()
        config = narrow_config(inputs.checkpoint, kept)
        distributed.on_first(lambda: _cut(inputs, services, store, Q, config))
        made = store.folder(CUT)
        if inputs.config.refit:
            _fit(inputs, replace(services, store=store), Checkpoint.open(made), Q, config)
            made = store.folder(FITTED)
        distributed.on_first(lambda: made.rename(store.area.final))
    narrow = Checkpoint.open(store.final)
    return Narrowed(narrow, len(vectors), kept, inputs.config.method_names["hidden"], scores, energies)


def _basis(inputs: Inputs, services: Services) -> dict[str, Tensor]:
    """`vectors` (d, d), their `scores` (d,), and for each place the share of its energy that the kept ones carry."""
    config, checkpoint = inputs.config, inputs.checkpoint
    with services.monitor.stage("look at hidden dimensions", checkpoint.layers) as step:
        tokens = inputs.calibration.tokens
        places = moments_of_stream(inputs.streamed, tokens, step, services.memory, services.scratch)
    method = config.method("hidden")
    assert method.basis is not None
    chosen = method.basis(torch.stack([place.moment for place in places]).mean(0), config.seed)
    Q = chosen.vectors[:, : kept_dimensions(config, checkpoint)]
    return {"vectors": chosen.vectors, "scores": chosen.scores} | _energies(places, Q)


def _energies(places: list[Place], Q: Tensor) -> dict[str, Tensor]:
    return {p.name: ((p.moment @ Q) * Q).sum() / p.moment.diagonal().sum() for p in places}


def _cut(inputs: Inputs, services: Services, store: Store, Q: Tensor, config: Json) -> None:
    """The rotated and cut checkpoint, not fitted yet."""
    checkpoint = inputs.checkpoint
    with services.monitor.stage("narrow", checkpoint.layers) as step:
        folder, blocks = _empty(store.area.work / CUT), _empty(store.area.work / "cut-blocks")
        plain = StreamedModel(checkpoint, torch.device("cpu"), torch.float32)
        for index in range(checkpoint.layers):
            layer = plain.load(index)
            tensors = narrow_layer(layer, checkpoint.family, Q)
            write_block(blocks, fill(layer, tensors, torch.float32), checkpoint, index)
            step(f"layer {index}")

        def around(empty: bool) -> dict[str, Tensor]:
            return narrow_surroundings(plain.surroundings(empty), checkpoint, Q)

        write_checkpoint(folder, plain, blocks, range(checkpoint.layers), config, around)
        discard(blocks)


def _empty(folder: Path) -> Path:
    discard(folder)
    folder.mkdir()
    return folder


def _with_head(streamed: StreamedModel, head: Tensor, empty: bool) -> dict[str, Tensor]:
    """What surrounds the layers, with another head."""
    tensors = streamed.surroundings(empty)
    name = surrounding_names(streamed.checkpoint)[2]
    return tensors if empty else {**tensors, name: head.to(tensors[name])}


def _fit(inputs: Inputs, services: Services, narrow: Checkpoint, Q: Tensor, config: Json) -> None:
    """The narrow checkpoint fitted to the untouched model; the one that isn't is removed."""
    streamed, store = StreamedModel(narrow, inputs.streamed.device, inputs.streamed.dtype), services.store
    area = store.area
    distributed.on_first(lambda: _empty(area.work / FITTED))

    def finished(index: int) -> nn.Module | None:
        if not store.has_block(index):
            return None
        shared = store.read_block(index, streamed.device)
        return fill(streamed.template(index), shared, streamed.dtype).to(streamed.device)

    def keep(layer: nn.Module, index: int) -> None:
        write_block(area.blocks, layer, narrow, index)
        area.worth_keeping()

    def edited(layer: nn.Module, index: int) -> None:
        distributed.on_first(lambda: keep(layer, index))

    def write(head: Tensor) -> None:
        around = partial(_with_head, streamed, head)
        write_checkpoint(area.work / FITTED, streamed, area.blocks, range(narrow.layers), config, around)
        discard(area.blocks)
        discard(narrow.path)

    with services.monitor.stage("fit hidden dimensions", narrow.layers) as step:
        pair, tokens = ModelPair(streamed, inputs.streamed, Q), inputs.calibration.tokens
        head = fit_hidden(pair, tokens, finished, edited, step, services.memory, services.scratch)
        distributed.on_first(lambda: write(head))
    inputs.streamed.release()
