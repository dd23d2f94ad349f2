"""The table of methods: what is known of each before its file, and with it torch, is imported.

A row is the name of the file beside this one, then title, what it prunes, what it needs, and the paper. What
validates a recipe, `secateur methods` and the completion of the command line read nothing else.
"""

from __future__ import annotations

from typing import NamedTuple


class Facts(NamedTuple):
    """What there is to know of a method without running it.

    Args:
        prunes: any of `weights`, `units`, `experts`, `dimensions`, `layers`, `sub-blocks`.
        needs: what is gathered for it first, see `contract.Method`.
    """

    title: str
    prunes: frozenset[str]
    needs: frozenset[str]
    paper: str


def _facts(title: str, prunes: str, needs: str, paper: str) -> Facts:
    return Facts(title, frozenset(prunes.split()), frozenset(needs.split()), paper)


INDEX: dict[str, Facts] = {
    "magnitude": _facts("Magnitude", "weights units experts", "", "https://arxiv.org/abs/1506.02626"),
    "wanda": _facts("Wanda", "weights units", "rms", "https://arxiv.org/abs/2306.11695"),
    "ria": _facts(
        "Relative importance and activations", "weights", "rms", "https://iclr.cc/virtual/2024/poster/18549"
    ),
    "gblm": _facts(
        "Gradient-based language model pruner", "weights", "fisher rms", "https://arxiv.org/abs/2311.04902"
    ),
    "wanda_regional": _facts(
        "Regional gradient score (Wanda++)", "weights", "regional rms", "https://arxiv.org/abs/2503.04992"
    ),
    "sparsegpt": _facts("SparseGPT", "weights", "gram", "https://arxiv.org/abs/2301.00774"),
    "admm": _facts("Gradual ADMM", "weights", "gram", "https://arxiv.org/abs/2401.02938"),
    "alps": _facts("ALPS: ADMM, then least squares", "weights", "gram", "https://arxiv.org/abs/2406.07831"),
    "swap": _facts("ALPS, then 1-swaps", "weights", "gram", "https://arxiv.org/abs/1803.01454"),
    "obs": _facts("Greedy structured OBS", "units", "gram", "https://arxiv.org/abs/2302.04089"),
    "mi": _facts("Multivariate mutual information and energy", "units", "gram", "https://arxiv.org/abs/2406.00030"),
    "flap": _facts("FLAP", "units", "mean rms", "https://arxiv.org/abs/2312.11983"),
    "activation": _facts("Mean size of activations", "units", "mean_abs", "https://arxiv.org/abs/1607.03250"),
    "taylor": _facts(
        "First-order Taylor, element-wise", "weights units", "gradient_size", "https://arxiv.org/abs/2305.11627"
    ),
    "taylor_group": _facts(
        "First-order Taylor, group-summed", "units", "gradient", "https://arxiv.org/abs/2305.11627"
    ),
    "taylor2": _facts("Second-order Taylor", "units", "fisher gradient", "https://arxiv.org/abs/2305.11627"),
    "fisher": _facts("Fisher information", "weights units", "fisher", "https://arxiv.org/abs/1801.05787"),
    "gate_fisher": _facts(
        "Fisher information of the gate", "units", "input_fisher", "https://arxiv.org/abs/1801.05787"
    ),
    "gradient_activation": _facts(
        "Activation times gradient", "units", "gradient", "https://arxiv.org/abs/1611.06440"
    ),
    "entropy_taylor": _facts(
        "Taylor expansion of the output entropy", "units", "entropy_gradient", "https://arxiv.org/abs/2603.08083"
    ),
    "mi_pairs": _facts(
        "Pairwise mutual information (reconstruction)", "units", "sample", "https://arxiv.org/abs/2406.00030"
    ),
    "pca": _facts("Principal components (SliceGPT)", "dimensions", "", "https://arxiv.org/abs/2401.15024"),
    "random": _facts("Random (control)", "weights units experts dimensions", "", "https://arxiv.org/abs/1801.10447"),
    "reap": _facts(
        "Router-weighted expert activations", "experts", "expert_outputs", "https://arxiv.org/abs/2510.13999"
    ),
    "expert_frequency": _facts(
        "How often an expert is chosen", "experts", "routes", "https://arxiv.org/abs/2404.05089"
    ),
    "block_influence": _facts("Block influence (ShortGPT)", "layers", "", "https://arxiv.org/abs/2403.03853"),
    "entropy_increase": _facts("Entropy increase of a layer", "layers", "", "https://arxiv.org/abs/2504.03794"),
    "layer_mi": _facts(
        "Mutual information of a layer's input and output", "layers", "", "https://arxiv.org/abs/2406.00030"
    ),
    "leave_one_out": _facts("Leave-one-out perplexity", "layers sub-blocks", "", "https://arxiv.org/abs/2402.09025"),
}
