"""Weights, gradients and optimiser spread over the processes: torch's own FSDP2, `fully_shard`.

Each process holds a slice of every parameter. A layer is put together just before it computes, and its gradients are
averaged and sliced right after, so what is whole at any time is one layer, and what surrounds the layers. The model
is sharded once, before any trainer sees it; to transformers and accelerate it is a model that needs no wrapping.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.errors import InputError
from secateur.model.architectures import Family
from secateur.system import distributed

SCHEDULE = "schedule.json"


def shard(model: Any, family: Family, device: torch.device, dtype: torch.dtype) -> Any:
    """Spreads a model over the processes, layer by layer; every process gives the same whole model.

    Args:
        device: where the slices live. The model may be elsewhere.
        dtype: of the products. Slices keep theirs, and gradients are summed in fp32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = distributed.mesh(device)
    how = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in model.get_submodule(family.layers).children():
        fully_shard(layer, mesh=mesh, mp_policy=how)
    fully_shard(model, mesh=mesh, mp_policy=how)
    for module in model.modules():  # buffers aren't sharded
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    model._is_accelerate_prepared = True  # it is in its place, and averages its own gradients
    return model


def is_sharded(model: Any) -> bool:
    """Whether `shard` has spread it."""
    return any(is_slice(parameter) for parameter in model.parameters())


def hold(model: Any, masks: dict[str, Tensor]) -> None:
    """From now on zeros stay zeros: their gradients are zero, and so is AdamW's step from them; Muon's is cut.

    No process keeps a whole mask, and no product W * mask waits for the backward pass: each slice of the gradient is
    multiplied by its own slice of the mask.
    """
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        parameter.register_post_accumulate_grad_hook(_masked(own(mask, parameter)))


def own(tensor: Tensor, parameter: Any) -> Tensor:
    """This process's slice of a whole tensor that belongs to a parameter; the first process's counts."""
    from torch.distributed.tensor import distribute_tensor

    there = tensor.to(parameter.device)
    if not is_slice(parameter):
        return there
    return distribute_tensor(there, parameter.device_mesh, parameter.placements).to_local()


def local(tensor: Any) -> Tensor:
    """What this process holds of it."""
    found: Tensor = tensor.to_local() if is_slice(tensor) else tensor
    return found


def whole(tensor: Any) -> Tensor:
    """The tensor put together from its slices, on every process; all must ask. A plain one is as it is."""
    found: Tensor = tensor.full_tensor() if is_slice(tensor) else tensor
    return found


def is_slice(tensor: Any) -> bool:
    """Whether it is a slice of a sharded one: torch's DTensor."""
    return hasattr(tensor, "full_tensor")


def _masked(kept: Tensor) -> Callable[[Any], None]:
    def multiply(parameter: Any) -> None:
        parameter.grad.to_local().mul_(kept)

    return multiply


# ----------------------------------------------------------------------------- the optimiser, to resume from


def save_optimizer(folder: Path, model: nn.Module, optimizer: Any, schedule: Any) -> None:
    """Each process writes its slices of the optimiser's state, the first one the schedule."""
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{name}:{key}"] = local(value).cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, _file(folder))
    if distributed.is_main():
        told = {"last_epoch": schedule.last_epoch, "rates": schedule.get_last_lr()}
        (folder / SCHEDULE).write_text(json.dumps(told), encoding="utf-8")


def load_optimizer(folder: Path, model: nn.Module, optimizer: Any, schedule: Any) -> None:
    """What `save_optimizer` of as many processes has left.

    Raises:
        InputError: there were more of them, or fewer.
    """
    from torch.distributed.tensor import DTensor

    before = len(list(folder.glob("optimizer-*.safetensors")))
    if before != distributed.world():
        raise InputError(f"the training was sharded over {before} processes, here are {distributed.world()}")
    parameters: Mapping[str, Any] = dict(model.named_parameters())
    places = {p: i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    for entry, value in load_file(_file(folder)).items():
        name, _, key = entry.rpartition(":")
        parameter = parameters[name]
        if value.dim():  # not the count of steps
            there, mesh, placements = value.to(parameter.device), parameter.device_mesh, parameter.placements
            value = DTensor.from_local(there, mesh, placements, shape=parameter.shape, stride=parameter.stride())
        state.setdefault(places[parameter], {})[key] = value
    told = json.loads((folder / SCHEDULE).read_text(encoding="utf-8"))
    groups = optimizer.state_dict()["param_groups"]
    for group, rate in zip(groups, told["rates"], strict=True):
        group["lr"] = rate
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    schedule.load_state_dict(
        {"last_epoch": told["last_epoch"], "_last_lr": told["rates"], "lr_lambdas": [None] * len(groups)}
    )


def _file(folder: Path) -> Path:
    return folder / f"optimizer-{distributed.rank()}.safetensors"
