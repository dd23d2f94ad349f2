"""States of what is trained, as safetensors in the work area: where it began, and the best so far."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.recovery.shard import is_slice, own, whole
from secateur.system import distributed

START, BEST = "start", "best"


def trained(model: Any) -> dict[str, Tensor]:
    """The parameters that are trained, tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def gathered(model: Any) -> dict[str, Tensor]:
    """Their values on the CPU, put together where the model is sharded: every rank calls, the first one gets them."""
    found = {}
    for name, parameter in trained(model).items():
        value = whole(parameter.detach())  # one at a time: together they needn't fit
        if distributed.is_main():
            found[name] = value.cpu().contiguous()
    return found


@torch.no_grad()
def put_back(model: Any, tensors: dict[str, Tensor]) -> None:
    """Copies values into the parameters of these names; of a sharded model, on every rank."""
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        put_into(parameters[name], tensor)


def put_into(parameter: Any, tensor: Tensor) -> None:
    """A value into a parameter, or each rank's slice of it into the rank's."""
    if is_slice(parameter):
        parameter.to_local().copy_(own(tensor, parameter))
    else:
        parameter.copy_(tensor)


@dataclass(frozen=True)
class Best:
    """The best state: the step after which it was seen, and its loss on the held-out sequences."""

    step: int
    held_out: float


class States:
    """A folder of states. Only the first rank writes; all ranks read, so they must share the folder or the memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, tensors: dict[str, Tensor], step: int = 0, held_out: float = float("nan")) -> None:
        """Writes a state; the file appears whole or not at all."""

        def write() -> None:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = self._folder / f"{name}.partial"
            save_file(tensors, partial, metadata={"step": str(step), "held_out": repr(held_out)})
            partial.rename(self._folder / f"{name}.safetensors")

        distributed.on_first(write)

    @torch.no_grad()
    def get(self, name: str, model: Any) -> None:
        """Gives a model the values of a state, on every rank."""
        with ExitStack() as stack:
            handle: Any = None
            if distributed.is_main():
                handle = stack.enter_context(safe_open(self._folder / f"{name}.safetensors", framework="pt"))
            for key, parameter in trained(model).items():  # one at a time: together they needn't fit on a device
                value = handle.get_tensor(key) if handle is not None else torch.empty(parameter.shape)
                value = value.to(parameter.device, parameter.dtype)
                if not is_slice(parameter):
                    distributed.broadcast([value], 0)
                put_into(parameter, value)

    def read(self, name: str) -> dict[str, Tensor]:
        """The values of a state, where its file is in reach."""
        return load_file(self._folder / f"{name}.safetensors")

    def best(self) -> Best | None:
        """What is known of the best state, on every rank; None if there is none yet."""
        return distributed.from_first(lambda: read_best(self._folder))


def read_best(folder: Path) -> Best | None:
    """The step and the loss of the best state that a folder holds."""
    file = folder / f"{BEST}.safetensors"
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as handle:
        found = handle.metadata()
    return Best(int(found["step"]), float(found["held_out"]))
