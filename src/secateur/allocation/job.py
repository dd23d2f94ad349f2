"""What spreading a run's sparsity takes, and what it spreads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secateur.calibration.activations import MemoryBudget
from secateur.calibration.gradients import LayerGradients
from secateur.calibration.walk import Block
from secateur.config.configuration import Configuration
from secateur.cut.experts import score_experts
from secateur.cut.rules import Rules
from secateur.cut.units import score_site, seed_of
from secateur.methods import Method
from secateur.model.linears import Linear, linears_of
from secateur.model.site_kinds import KINDS, UNIT_KINDS
from secateur.model.sites import Site
from secateur.model.streamed import StreamedModel
from secateur.numerics.moments import Moments

ProgressStep = Callable[[str], None]


class Job(NamedTuple):
    """What allocating takes: the run's settings, the opened model, the text, where hidden states may go."""

    config: Configuration
    rules: Rules
    streamed: StreamedModel
    tokens: Tensor
    kept: tuple[int, ...]
    gradients: LayerGradients | None = None
    step: ProgressStep = lambda text: None
    budget: MemoryBudget | None = None
    work: Path | None = None
    noted: Any = None  # where an interrupted search had got to
    note: Callable[[Any], None] = lambda reached: None
    counts: Tensor | None = None  # of `tokens`, those whose predictions are looked at; None = all

    @property
    def drops(self) -> int:
        """How many whole layers a search may choose anew: none where sub-blocks were chosen for those that stay."""
        return 0 if self.rules.sub_blocks else self.rules.layers_to_drop

    @property
    def layers(self) -> tuple[int, ...]:
        """Those that stay and may be cut."""
        return tuple(i for i in self.kept if i not in self.rules.protected)

    def sites(self, index: int) -> list[Site]:
        """The sites of one layer that units go from, by shape alone."""
        return [site for site in self.streamed.checkpoint.sites[index] if site.kind in self.rules.unit_kinds]

    def linears(self, index: int) -> list[Linear]:
        return linears_of(self.streamed.template(index), self.streamed.checkpoint.family)


def key_of(layer: int, name: str, label: str = "") -> str:
    """How an allocation names a kind of site, or a Linear, of a layer; the experts of a layer are one.

    Args:
        label: of one site among several of its kind, where they are told apart.
    """
    return f"layers.{layer}.{name}" + (f"[{label}]" if label else "")


def pools_of(job: Job) -> list[frozenset[str]]:
    """Kinds that share a budget."""
    units = job.rules.unit_kinds
    together = [units] if job.config.pooled else [frozenset({kind}) for kind in sorted(units)]
    weights = [frozenset({"weight"})] if weighs(job) else []
    return [pool for pool in (*together, *weights) if pool]


def weighs(job: Job) -> bool:
    """Whether there is something to spread of single weights."""
    return job.rules.weight_method is not None and job.rules.pattern.free


def local_cut(job: Job, key: str, kind: str) -> float:
    """Parameters that would go from here if every site gave the same."""
    layer, _, name = key.removeprefix("layers.").partition(".")
    if kind in UNIT_KINDS:
        sites = [site for site in job.sites(int(layer)) if site.kind == kind]
        return sum((s.units - job.rules.units.keep_count(s)) * s.params_per_unit for s in sites)
    sparsity = job.rules.weight_sparsity(int(layer))
    own = [x for x in job.linears(int(layer)) if name in ("weight", x.name)]
    return sum(x.shape[0] * x.shape[1] * sparsity(x.name) for x in own)


def scores_of(
    job: Job, block: Block, sites: list[Site], method: Method, known: Mapping[str, Moments] | None = None
) -> Tensor:
    """Importance of the units of sites of one kind, one site after the other.

    Args:
        known: what is known already of the inputs of the sites' consumers; None: it is gathered.
    """
    seed = job.config.seed
    if not KINDS[sites[0].kind].refitted:
        return torch.cat([score_experts(block, site, method, seed_of(site, seed)) for site in sites])
    found = known or block.moments([site.consumer for site in sites], method.statistics)
    consumers = {linear.name: linear.weight for linear in block.linears}
    return torch.cat([score_site(block, s, consumers[s.consumer], found[s.consumer], method, seed) for s in sites])
