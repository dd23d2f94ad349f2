"""In which precision a device keeps sums and solves: fp64, or the best that it has instead.

fp64 is known by trying, not by a device's name. Where it is missing, or adding in it is slow, sums over many batches
are kept in fp32 with what each addition rounds away carried along (Kahan 1965).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

SLOW = 4.0  # times as long as the compensated sum, which is four operations
SIDE, ROUNDS = 1024, 3  # of the matrices that are added to find out


@cache
def has_double(device: torch.device) -> bool:
    """Whether a device computes in fp64 at all; mps doesn't."""
    try:
        return torch.zeros(1, dtype=torch.float64, device=device).dtype == torch.float64
    except (TypeError, RuntimeError):
        return False


def wide_dtype(device: torch.device) -> torch.dtype:
    """Gives the widest float dtype of a device: fp64, or fp32 on devices without it."""
    return torch.float64 if device.type == "cpu" or has_double(device) else torch.float32


@cache
def sums_dtype(device: torch.device) -> torch.dtype:
    """What sums over many batches are kept in: fp64, unless adding in it is missing or slow, measured once."""
    if device.type == "cpu":
        return torch.float64
    if not has_double(device):
        return torch.float32
    part, lost = torch.ones(SIDE, SIDE, device=device), torch.zeros(SIDE, SIDE, device=device)
    totals = {dtype: torch.zeros(SIDE, SIDE, dtype=dtype, device=device) for dtype in (torch.float32, torch.float64)}
    compensated = _seconds(lambda: add_compensated(totals[torch.float32], lost, part), lost)
    plain = _seconds(lambda: totals[torch.float64].add_(part), totals[torch.float64])
    return torch.float64 if plain <= SLOW * compensated else torch.float32


def add_compensated(total: Tensor, lost: Tensor, part: Tensor) -> None:
    """Adds `part` to `total`, in place; `lost` holds what was added too much so far, and is brought up to date."""
    part = part - lost
    new = total + part
    lost.copy_((new - total).sub_(part))
    total.copy_(new)


def _seconds(run: Callable[[], object], result: Tensor) -> float:
    """The shortest of some runs; the first one, which warms up, doesn't count."""
    taken = []
    for _ in range(ROUNDS + 1):
        begin = time.perf_counter()
        run()
        float(result[0, 0])  # waits for the device
        taken.append(time.perf_counter() - begin)
    return min(taken[1:])
