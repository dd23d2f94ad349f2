"""Spreads a run's sparsity over its layers before the walk: what each site would lose decides what it gives.

Everything is looked at in the untouched model. How much goes in all stays what `local` would take: one number for
several kinds of units is one budget of parameters for all of them, a number for each kind is a budget for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.allocation.curves import MOST, Curve, smooth, spread
from secateur.allocation.owl import outliers, owl
from secateur.allocation.ranked import curve_of
from secateur.allocation.uniform import keep_count
from secateur.calibration.activations import Budget
from secateur.calibration.gradients import LayerGradients, hand_over
from secateur.calibration.walk import Block, walk
from secateur.cut.counts import multiple
from secateur.cut.experts import score_experts
from secateur.cut.rules import UNIT_KINDS, Rules
from secateur.cut.sensitivity import SEQUENCES, Candidate, divergences
from secateur.cut.units import cut_units, score_site, seed_of
from secateur.cut.weights import cut_weights
from secateur.methods import Method, wanda
from secateur.model.linears import Linear, linears_of
from secateur.model.outer import Outer
from secateur.model.sites import Site, sites_of
from secateur.recipe import Recipe

Step = Callable[[str], None]
FINE = 1000  # steps of a Linear's sparsity
LEVELS = (0.125, 0.25, 0.5, 0.75)


class Job(NamedTuple):
    """What allocating takes: the run's settings, the opened model, the text, where hidden states may go."""

    recipe: Recipe
    rules: Rules
    outer: Outer
    tokens: Tensor
    kept: tuple[int, ...]
    gradients: LayerGradients | None = None
    step: Step = lambda text: None
    budget: Budget | None = None
    work: Path | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """Those that stay and may be cut."""
        return tuple(i for i in self.kept if i not in self.rules.protected)

    def sites(self, index: int) -> list[Site]:
        """The sites of one layer that units go from, by shape alone."""
        checkpoint = self.outer.checkpoint
        found = sites_of(self.outer.template(index), checkpoint.family, index, checkpoint.head_dim)
        return [site for site in found if site.kind in self.rules.unit_kinds]

    def linears(self, index: int) -> list[Linear]:
        return linears_of(self.outer.template(index), self.outer.checkpoint.family)


def key_of(layer: int, name: str) -> str:
    """How an allocation names a kind of site, or a Linear, of a layer; the experts of a layer are one."""
    return f"layers.{layer}.{name}"


def allocate(job: Job) -> dict[str, float]:
    """Key -> the fraction that goes; empty for `local`, where every site gives the same."""
    how = job.recipe.allocate
    if how == "local":
        return {}
    if how == "owl":
        return _owl(job)
    curves = _measured(job, LEVELS) if how == "sensitivity" else _ranked(job)
    shares: dict[str, float] = {}
    for kinds in _pools(job):
        pool = {key: curve for key, (kind, curve) in curves.items() if kind in kinds}
        target = sum(_local(job, key, kind) for key, (kind, _) in curves.items() if kind in kinds)
        total = sum(curve.units * curve.parameters for curve in pool.values())
        shares |= spread(pool, target, max(MOST, (1 + target / total) / 2 if total else MOST))
    return shares


def apply(rules: Rules, shares: Mapping[str, float], recipe: Recipe) -> Rules:
    """The rules with these fractions in place of the same one for all."""
    if not shares:
        return rules

    def count(site: Site) -> int:
        share = shares.get(key_of(site.layer, site.kind))
        if share is None:
            return rules.units.keep_count(site)
        if share <= 0:
            return site.units
        return max(site.least, keep_count(site.units, share, site.groups, multiple(recipe, site)))

    def sparsity(layer: int) -> Callable[[str], float]:
        local = rules.weight_sparsity(layer)
        return lambda linear: shares.get(key_of(layer, linear), shares.get(key_of(layer, "weight"), local(linear)))

    return replace(rules, units=replace(rules.units, keep_count=count), weight_sparsity=sparsity)


def _pools(job: Job) -> list[frozenset[str]]:
    """Kinds that share a budget."""
    units = job.rules.unit_kinds
    together = [units] if isinstance(job.recipe.sparsity, float) else [frozenset({kind}) for kind in sorted(units)]
    weights = [frozenset({"weight"})] if _weighs(job) else []
    return [pool for pool in (*together, *weights) if pool]


def _weighs(job: Job) -> bool:
    return job.rules.weight_method is not None and job.rules.pattern.free


def _local(job: Job, key: str, kind: str) -> float:
    """Parameters that would go from here if every site gave the same."""
    layer, _, name = key.removeprefix("layers.").partition(".")
    if kind != "weight":
        sites = [site for site in job.sites(int(layer)) if site.kind == kind]
        return sum((s.units - job.rules.units.keep_count(s)) * s.params_per_unit for s in sites)
    sparsity = job.rules.weight_sparsity(int(layer))
    own = [x for x in job.linears(int(layer)) if name in ("weight", x.name)]
    return sum(x.shape[0] * x.shape[1] * sparsity(x.name) for x in own)


def _site_curve(job: Job, sites: list[Site], points: tuple[tuple[float, float], ...]) -> Curve:
    """Sites of one layer and kind (one, or one for each expert) as one."""
    first = sites[0]
    step = math.lcm(first.groups, multiple(job.recipe, first))
    return Curve(first.units, step, sum(site.params_per_unit for site in sites), points, first.least)


def _ranked(job: Job) -> dict[str, tuple[str, Curve]]:
    """Curves from scores, by one walk through the untouched model."""
    curves: dict[str, tuple[str, Curve]] = {}
    for block in walk(job.outer, job.tokens, layers=job.kept, budget=job.budget, work=job.work):
        if block.index in job.rules.protected:
            continue
        hand_over(block, job.gradients, job.rules.loss)
        sites = job.sites(block.index)
        for kind in sorted({site.kind for site in sites}):
            own = [site for site in sites if site.kind == kind]
            method = job.rules.units.method_for(kind)
            assert method is not None
            scores = _scores(job, block, own, method)
            points = curve_of(scores, method.running)
            curves[key_of(block.index, kind)] = kind, _site_curve(job, own, points)
        for linear, moments in block.statistics(wanda.METHOD.needs) if _weighs(job) else ():
            points = curve_of(wanda.score(linear.weight, moments).square())
            size = linear.shape[0] * linear.shape[1]
            curves[key_of(block.index, linear.name)] = "weight", Curve(FINE, 1, size / FINE, points)
        job.step(f"layer {block.index}")
        del block
    return curves


def _scores(job: Job, block: Block, sites: list[Site], method: Method) -> Tensor:
    """Importance of the units of sites of one kind, one site after the other."""
    seed = job.recipe.seed
    if sites[0].kind == "expert":
        return torch.cat([score_experts(block, site, method, seed_of(site, seed)) for site in sites])
    found = block.moments([site.reader for site in sites], method.statistics)
    readers = {linear.name: linear.weight for linear in block.linears}
    return torch.cat([score_site(block, s, readers[s.reader], found[s.reader], method, seed) for s in sites])


def _owl(job: Job) -> dict[str, float]:
    """Layers with many outliers give less, of every kind."""
    ratios: list[float] = []
    for block in walk(job.outer, job.tokens, layers=job.kept, budget=job.budget, work=job.work):
        if block.index in job.rules.protected:
            continue
        counts = [outliers(wanda.score(x.weight, moments)) for x, moments in block.statistics(wanda.METHOD.needs)]
        ratios.append(sum(above for above, _ in counts) / sum(size for _, size in counts))
        job.step(f"layer {block.index}")
        del block
    shares: dict[str, float] = {}
    for kind in (*sorted(job.rules.unit_kinds), *(["weight"] if _weighs(job) else [])):
        wanted = job.recipe.sparsity_for("weight") if kind == "weight" else _going(job, kind)
        shares |= {key_of(i, kind): s for i, s in zip(job.layers, owl(ratios, wanted), strict=True)}
    return shares


def _going(job: Job, kind: str) -> float:
    """The fraction of the units of a kind that go now."""
    sites = [site for index in job.layers for site in job.sites(index) if site.kind == kind]
    kept = sum(min(job.rules.units.keep_count(site), site.units) for site in sites)
    return 1 - kept / sum(site.units for site in sites)


def candidates_of(job: Job, levels: tuple[float, ...]) -> list[Candidate]:
    """Every kind of site of every layer that may be cut, at every level that takes something and leaves something."""
    found: dict[Candidate, None] = {}
    for index in job.layers:
        sites = job.sites(index)
        for kind in sorted({site.kind for site in sites}):
            site = next(s for s in sites if s.kind == kind)
            for level in levels:
                count = keep_count(site.units, level, site.groups, multiple(job.recipe, site))
                if site.least <= count < site.units:
                    found[Candidate(index, kind, 1 - count / site.units)] = None
        if _weighs(job):
            found |= {Candidate(index, "weight", level): None for level in levels}
    return list(found)


def measure(job: Job, levels: tuple[float, ...]) -> dict[Candidate, float]:
    """KL from the untouched model with one site cut alone, for every candidate."""
    plain = replace(job.rules.units, target="pruned", explain=False)

    def cut(block: Block, kind: str, level: float) -> None:
        if kind in UNIT_KINDS:
            rules = replace(plain, keep_count=lambda site: round(site.units * (1 - level)))
            cut_units(block, frozenset({kind}), rules)
        elif job.rules.weight_method is not None:
            cut_weights(block, job.rules.weight_method, job.rules.pattern, lambda linear: level)

    candidates = candidates_of(job, levels)
    tokens, loss = job.tokens[:SEQUENCES], job.rules.loss
    where = (job.step, job.budget, job.work)
    return dict(
        zip(
            candidates,
            divergences(job.outer, tokens, candidates, cut, job.kept, loss, job.gradients, *where),
            strict=True,
        )
    )


def _measured(job: Job, levels: tuple[float, ...]) -> dict[str, tuple[str, Curve]]:
    """Curves as measured, site by site."""
    found = measure(job, levels)
    curves: dict[str, tuple[str, Curve]] = {}
    for layer, kind in dict.fromkeys((c.layer, c.kind) for c in found):
        points = smooth([(c.level, kl) for c, kl in found.items() if (c.layer, c.kind) == (layer, kind)])
        if kind == "weight":
            size = sum(x.shape[0] * x.shape[1] for x in job.linears(layer))
            curve = Curve(FINE, 1, size / FINE, points)
        else:
            curve = _site_curve(job, [s for s in job.sites(layer) if s.kind == kind], points)
        curves[key_of(layer, kind)] = kind, curve
    return curves
