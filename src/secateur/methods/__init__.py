"""One paper a file, pure functions of tensors. `METHODS` lists them all; nothing registers itself."""

from __future__ import annotations

from secateur.methods import (
    activation,
    admm,
    alps,
    block_influence,
    entropy_increase,
    entropy_taylor,
    expert_frequency,
    fisher,
    flap,
    gate_fisher,
    gblm,
    gradient_activation,
    layer_mi,
    leave_one_out,
    magnitude,
    mi,
    mi_pairs,
    obs,
    pca,
    random,
    reap,
    ria,
    sparsegpt,
    swap,
    taylor,
    taylor2,
    taylor_group,
    wanda,
    wanda_regional,
)
from secateur.methods.contract import GRADIENTS, Basis, Method, Solution, prune_weight
from secateur.methods.units import ExpertUnits, Units
from secateur.numerics.routing import ROUTING

METHODS: dict[str, Method] = {
    "magnitude": magnitude.METHOD,
    "wanda": wanda.METHOD,
    "ria": ria.METHOD,
    "gblm": gblm.METHOD,
    "wanda_regional": wanda_regional.METHOD,
    "sparsegpt": sparsegpt.METHOD,
    "admm": admm.METHOD,
    "alps": alps.METHOD,
    "swap": swap.METHOD,
    "obs": obs.METHOD,
    "mi": mi.METHOD,
    "flap": flap.METHOD,
    "activation": activation.METHOD,
    "taylor": taylor.METHOD,
    "taylor_group": taylor_group.METHOD,
    "taylor2": taylor2.METHOD,
    "fisher": fisher.METHOD,
    "gate_fisher": gate_fisher.METHOD,
    "gradient_activation": gradient_activation.METHOD,
    "entropy_taylor": entropy_taylor.METHOD,
    "mi_pairs": mi_pairs.METHOD,
    "pca": pca.METHOD,
    "random": random.METHOD,
    "reap": reap.METHOD,
    "expert_frequency": expert_frequency.METHOD,
    "block_influence": block_influence.METHOD,
    "entropy_increase": entropy_increase.METHOD,
    "layer_mi": layer_mi.METHOD,
    "leave_one_out": leave_one_out.METHOD,
}

__all__ = ["GRADIENTS", "METHODS", "ROUTING", "Basis", "Experts", "Method", "Solution", "Units", "prune_weight"]
