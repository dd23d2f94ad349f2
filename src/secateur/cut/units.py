"""Structured cuts of one block: score the units of a site, choose, refit the consumer, remove.

Sites are cut in the order in which data flows through the block (heads, experts, what is inside experts), each on
the statistics that the cuts before it have left.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.calibration.walk import Block
from secateur.cut.evidence import Evidence, evidence_of
from secateur.cut.experts import remove_experts, score_experts
from secateur.cut.merging import Merge, remove_and_merge
from secateur.cut.normed import refit_beside, refitted, shrinkage
from secateur.cut.prove import prove_removal
from secateur.methods import Method, Units
from secateur.model.linears import Linear
from secateur.model.site_kinds import KINDS, TURNS
from secateur.model.sites import Site, sites_of
from secateur.model.surgery import remove, unit_parameters, update_heads
from secateur.numerics.moments import Moments
from secateur.numerics.patterns import keep_best
from secateur.numerics.support import support_of
from secateur.numerics.targets import NEEDS, Target, best_bias, relative_error, retarget


@dataclass(frozen=True)
class UnitCut:
    """What was done to one site.

    Args:
        keep: kept units, ascending.
        scores: importance of each unit, None where a plan was replayed.
        error_masked: E|Wx - W'x|^2 / E|Wx|^2 of the consumer with the units gone, nothing made up for. No Linear
            reads whole experts: where they are merged it's that of what all of them write together, otherwise None.
        error: the same after the refit, or the merging.
        damping: what the refit's ridge ended with; None without refit.
        evidence: why its units went; None where none did, or where it wasn't asked for.
        merged: what became of the experts that went; None unless they were to be merged.
    """

    site: Site
    keep: tuple[int, ...]
    scores: tuple[float, ...] | None
    error_masked: float | None
    error: float | None
    damping: float | None
    evidence: Evidence | None = None
    merged: tuple[Merge, ...] | None = None


@dataclass(frozen=True)
class UnitRules:
    """How the units of a block are cut.

    Args:
        method: scores them.
        keep_count: site -> how many units stay (a multiple of site.groups).
        planned: site -> units to keep, from a plan; None = choose by score.
        refit: make up for the cut in the consumer's weights by least squares.
        biased: consumers (by name) that may carry a bias, so that the refit uses it.
        target: what the consumer is solved for, see `numerics.targets`.
        seed: of methods that draw.
        explain: gather evidence.
        mean_into_bias: without refit, let the consumer's bias take over the mean of what went (FLAP).
        expert_method: scores whole experts.
        merge: let the experts that stay absorb those that go.
    """

    method: Method | None
    keep_count: Callable[[Site], int]
    planned: Callable[[Site], tuple[int, ...] | None]
    refit: bool
    biased: frozenset[str]
    target: Target = "pruned"
    seed: int = 0
    explain: bool = False
    mean_into_bias: bool = False
    expert_method: Method | None = None
    merge: bool = False

    def method_for(self, kind: str) -> Method | None:
        """What scores the units of a kind of site."""
        return self.method if KINDS[kind].refitted else self.expert_method


def cut_units(block: Block, kinds: frozenset[str], rules: UnitRules) -> list[UnitCut]:
    """Cuts every site of the given kinds in one block, in place."""
    cuts: list[UnitCut] = []
    checkpoint = block.streamed.checkpoint
    for kind in TURNS:
        if kind not in kinds:
            continue
        # Read again for each kind: removing KV groups changes how many query heads there are.
        sites = [
            site
            for site in sites_of(block.layer, checkpoint.family, block.index, checkpoint.head_dim)
            if site.kind == kind
        ]
        if KINDS[kind].refitted:
            cuts += _cut_sites(block, sites, rules)
        else:
            cuts += [_cut_experts(block, site, rules) for site in sites]
    return cuts


def _cut_experts(block: Block, site: Site, rules: UnitRules) -> UnitCut:
    keep, scores = rules.planned(site), None
    if keep is None:
        assert rules.expert_method is not None
        values = score_experts(block, site, rules.expert_method, seed_of(site, rules.seed))
        keep, scores = choose(values, site, rules.keep_count(site)), tuple(values.tolist())
    if len(keep) == site.units:
        return UnitCut(site, keep, scores, None, None, None)
    if rules.merge:
        done = remove_and_merge(block, site, mask_of(keep, site.units))
        return UnitCut(site, keep, scores, done.error_removed, done.error, None, merged=done.merges)
    remove_experts(block, site, mask_of(keep, site.units))
    return UnitCut(site, keep, scores, None, None, None)


def _cut_sites(block: Block, sites: list[Site], rules: UnitRules) -> list[UnitCut]:
    needs = (rules.method.statistics if rules.method else frozenset()) | {"gram", "mean"} | NEEDS[rules.target]
    needs = needs | ({"peaks"} if rules.explain else set())
    moments = block.moments([site.consumer for site in sites], frozenset(needs))
    consumers = {linear.name: linear for linear in block.linears}
    done = [decide(block, site, consumers[site.consumer], moments[site.consumer], rules) for site in sites]
    masks = [(cut.site, mask_of(cut.keep, cut.site.units)) for cut in done]
    if any(not bool(mask.all()) for _, mask in masks):
        prove_removal(block, masks)
        for layer in (block.layer, *block.gradients.values()):
            remove(layer, masks)
        update_heads(block.layer, block.streamed.checkpoint.family, block.streamed.checkpoint.head_dim)
    return done


def decide(block: Block, site: Site, consumer: Linear, moments: Moments, rules: UnitRules) -> UnitCut:
    """Chooses the units of one site and refits its consumer, which keeps its shape for now."""
    weight = consumer.weight
    support = support_of(weight)
    dense, dense_bias = block.original(consumer, weight)
    biased = rules.refit and site.consumer in rules.biased and consumer.bias is not None
    about = moments
    if rules.refit:
        weight, about = retarget(weight, moments, rules.target, dense, biased)
    keep, scores = rules.planned(site), None
    if keep is None:
        assert rules.method is not None
        values = score_site(block, site, weight, about, rules.method, rules.seed)
        keep, scores = choose(values, site, rules.keep_count(site)), tuple(values.tolist())
    mask = mask_of(keep, site.units)
    columns = mask.repeat_interleave(site.width).to(weight.device)
    masked = weight.where(columns if support is None else columns & support, 0.0)
    error_masked = relative_error(weight, masked, moments, biased=False)
    explains = rules.explain and not bool(mask.all())
    evidence = evidence_of(site, weight, moments, about, mask) if explains else None
    if not rules.refit or bool(mask.all()):
        error = error_masked
        if rules.mean_into_bias and site.consumer in rules.biased and consumer.bias is not None:
            consumer.bias.add_(((weight - masked) @ moments.mean.to(weight.device)).to(consumer.bias.dtype))
            error = relative_error(weight, masked, moments, biased=True)
        return UnitCut(site, keep, scores, error_masked, error, None, evidence)
    masked, fit = refitted(weight, about.gram, columns, support, about.mean if biased else None)
    factor = shrinkage(block, site, moments, mask)
    consumer.weight = masked * factor if factor != 1 else masked
    if KINDS[site.kind].normed:
        refit_beside(block, consumer, about.gram, columns, factor)
    if fit.bias is not None and consumer.bias is not None:
        own = rules.target == "pruned"
        shift = fit.bias if own else best_bias(masked, consumer.bias, moments, dense, dense_bias)
        consumer.bias.add_(shift.to(consumer.bias.dtype))
    error = relative_error(weight, masked, moments, biased)
    return UnitCut(site, keep, scores, error_masked, error, fit.damping, evidence)


def score_site(block: Block, site: Site, consumer: Tensor, moments: Moments, method: Method, seed: int) -> Tensor:
    """Importance (units,) fp64 of each unit of a site.

    Args:
        consumer: weight of the site's consumer, and `moments` of its inputs.
    """
    assert method.score_units is not None
    slopes = {need: unit_parameters(block.gradients[need], site) for need in method.loss}
    group = unit_parameters(block.layer, site)
    return method.score_units(Units(consumer, moments, site.width, group, slopes, seed_of(site, seed)))


def seed_of(site: Site, seed: int) -> int:
    """Another seed for each site of a run."""
    return zlib.crc32(f"{seed} {site.name}".encode())


def choose(scores: Tensor, site: Site, count: int) -> tuple[int, ...]:
    """The `count` best units, equally many in each of the site's groups; of equal scores the lower index."""
    grouped = scores.view(site.groups, -1)
    mask = keep_best(grouped, grouped.shape[1] - count // site.groups).flatten()
    return tuple(mask.nonzero().flatten().tolist())


def mask_of(keep: tuple[int, ...], units: int) -> Tensor:
    """Bool (units,), True = keep."""
    mask = torch.zeros(units, dtype=torch.bool)
    mask[list(keep)] = True
    return mask
