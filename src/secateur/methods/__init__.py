"""One paper a file, pure functions of tensors. `METHODS` lists them all; nothing registers itself."""

from __future__ import annotations

from secateur.methods import (
    admm,
    alps,
    block_influence,
    flap,
    leave_one_out,
    magnitude,
    obs,
    sparsegpt,
    swap,
    wanda,
)
from secateur.methods.contract import Method, Solution, prune_weight
from secateur.methods.units import Units

METHODS: dict[str, Method] = {
    "magnitude": magnitude.METHOD,
    "wanda": wanda.METHOD,
    "sparsegpt": sparsegpt.METHOD,
    "admm": admm.METHOD,
    "alps": alps.METHOD,
    "swap": swap.METHOD,
    "obs": obs.METHOD,
    "flap": flap.METHOD,
    "block_influence": block_influence.METHOD,
    "leave_one_out": leave_one_out.METHOD,
}

__all__ = ["METHODS", "Method", "Solution", "Units", "prune_weight"]
