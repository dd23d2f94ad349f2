"""States of what is trained, as safetensors in the work area: where it began, and the best so far."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur import distributed

START, BEST = "start", "best"


def trained(model: Any) -> dict[str, Tensor]:
    """The parameters that are trained, tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def put_back(model: Any, tensors: dict[str, Tensor]) -> None:
    """Copies values into the parameters of these names."""
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)


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
        if not distributed.is_main():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        partial = self._folder / f"{name}.partial"
        save_file(plain, partial, metadata={"step": str(step), "held_out": repr(held_out)})
        partial.rename(self._folder / f"{name}.safetensors")

    def get(self, name: str, model: Any) -> None:
        """Gives a model the values of a state, on every rank."""
        file = self._folder / f"{name}.safetensors"
        tensors: dict[str, Tensor] | None = None
        if distributed.is_main():
            with safe_open(file, framework="pt") as handle:
                tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - a handle is no dict
        device = next(model.parameters()).device
        put_back(model, distributed.share_tensors(tensors, 0, device))

    def best(self) -> Best | None:
        """What is known of the best state, on every rank; None if there is none yet."""
        return distributed.share_object(read_best(self._folder) if distributed.is_main() else None, 0)


def read_best(folder: Path) -> Best | None:
    """The step and the loss of the best state that a folder holds."""
    file = folder / f"{BEST}.safetensors"
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as handle:
        found = handle.metadata()
    return Best(int(found["step"]), float(found["held_out"]))
