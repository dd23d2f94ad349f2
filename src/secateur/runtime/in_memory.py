"""A model in memory that runs without the zeros of its Linears, as its compressed folder would: for timing it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from secateur.runtime.choose import choose
from secateur.runtime.format import pack
from secateur.runtime.loading import put_matrix, speed_up_rest


@torch.no_grad()
def without_zeros(model: Any, names: Iterable[str], stored: torch.dtype) -> Any:
    """Puts the packed form in the place of these Linears where that is faster here, in place, on a CPU.

    Args:
        names: of Linears, GPT-2's Conv1D among them; what else has a name (an expert) stays as it is.
        stored: dtype of the values in the folder, which stays that of packed ones.
    """
    places = dict(model.named_modules())
    for name in names:
        module = places.get(name)
        if module is None or type(module) not in (nn.Linear, Conv1D):
            continue
        W = module.get_parameter("weight").detach()
        packed = pack((W.T if isinstance(module, Conv1D) else W).to(stored).contiguous())
        put_matrix(model, name, packed, choose(packed, W.dtype), W.dtype, W.device)
    speed_up_rest(model, model.dtype)
    return model
