"""Weights in huge pages, where the system has them: a product goes through all of them, and finding pages costs."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor, nn

HUGE = 2 << 20


def room(size: int) -> Tensor:
    """Zeros, (size,) uint8; in huge pages if they fill one."""
    if size < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(size, dtype=torch.uint8)
    area = mmap.mmap(-1, size + HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        area.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(area, dtype=torch.uint8)  # keeps the area alive
    begin = -whole.data_ptr() % HUGE
    return whole[begin : begin + size]


def move_large(model: nn.Module) -> None:
    """Moves every parameter that fills a huge page into such pages; tied ones stay one."""
    for parameter in model.parameters():
        if parameter.nbytes >= HUGE:
            copy = room(parameter.nbytes).view(parameter.dtype).view(parameter.shape)
            parameter.data = copy.copy_(parameter.data)
