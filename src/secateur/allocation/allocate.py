"""Spreads a run's sparsity over its layers before the walk: what each site would lose decides what it gives.

Everything is looked at in the untouched model. How much goes in all stays what `local` would take: one number for
several kinds of units is one budget of parameters for all of them, a number for each kind is a budget for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from secateur.allocation.curves import MOST, Curve, smooth, spread
from secateur.allocation.divergence import SEQUENCES, Candidate, divergences
from secateur.allocation.evolve import evolved
from secateur.allocation.job import Job, key_of, local_cut, pools_of, scores_of, weighs
from secateur.allocation.owl import outliers, owl
from secateur.allocation.ranked import curve_of
from secateur.calibration.gradients import hand_over
from secateur.calibration.walk import Block, walk
from secateur.config.configuration import Configuration
from secateur.cut.counts import multiple
from secateur.cut.rules import Rules
from secateur.cut.units import cut_units
from secateur.cut.weights import cut_weights
from secateur.methods import wanda
from secateur.model.site_kinds import UNIT_KINDS
from secateur.model.sites import Site
from secateur.numerics.keep_counts import keep_count

FINE = 1000  # steps of a Linear's sparsity
LEVELS = (0.125, 0.25, 0.5, 0.75)


def allocate(job: Job) -> dict[str, float]:
    """Key -> the fraction that goes; empty for `local`, where every site gives the same."""
    how = job.config.allocate
    if how == "local":
        return {}
    if how == "owl":
        return _owl(job)
    if how == "evolve":
        return evolved(job)
    curves = _measured(job, LEVELS) if how == "sensitivity" else _ranked(job)
    shares: dict[str, float] = {}
    for kinds in pools_of(job):
        pool = {key: curve for key, (kind, curve) in curves.items() if kind in kinds}
        target = sum(local_cut(job, key, kind) for key, (kind, _) in curves.items() if kind in kinds)
        total = sum(curve.units * curve.parameters for curve in pool.values())
        shares |= spread(pool, target, max(MOST, (1 + target / total) / 2 if total else MOST))
    return shares


def apply(rules: Rules, shares: Mapping[str, float], config: Configuration) -> Rules:
    """The rules with these fractions in place of the same one for all."""
    if not shares:
        return rules

    def count(site: Site) -> int:
        share = shares.get(key_of(site.layer, site.kind))
        if share is None:
            return rules.units.keep_count(site)
        if share <= 0:
            return site.units
        return max(site.least, keep_count(site.units, share, site.groups, multiple(config, site)))

    def sparsity(layer: int) -> Callable[[str], float]:
        local = rules.weight_sparsity(layer)
        return lambda linear: shares.get(key_of(layer, linear), shares.get(key_of(layer, "weight"), local(linear)))

    return replace(rules, units=replace(rules.units, keep_count=count), weight_sparsity=sparsity)


def _site_curve(job: Job, sites: list[Site], points: tuple[tuple[float, float], ...]) -> Curve:
    """Sites of one layer and kind (one, one for each expert, or of two mixers) as one of the first's units."""
    first = sites[0]
    step = math.lcm(first.groups, multiple(job.config, first))
    parameters = sum(site.units * site.params_per_unit for site in sites) / first.units
    return Curve(first.units, step, parameters, points, first.least)


def _ranked(job: Job) -> dict[str, tuple[str, Curve]]:
    """Curves from scores, by one walk through the untouched model."""
    curves: dict[str, tuple[str, Curve]] = {}
    for block in walk(job.streamed, job.tokens, layers=job.kept, budget=job.budget, work=job.work):
        if block.index in job.rules.protected:
            continue
        hand_over(block, job.gradients, job.rules.gradient_needs)
        sites = job.sites(block.index)
        for kind in sorted({site.kind for site in sites}):
            own = [site for site in sites if site.kind == kind]
            method = job.rules.units.method_for(kind)
            assert method is not None
            scores = scores_of(job, block, own, method)
            points = curve_of(scores, method.running)
            curves[key_of(block.index, kind)] = kind, _site_curve(job, own, points)
        for linear, moments in block.statistics(wanda.METHOD.needs) if weighs(job) else ():
            points = curve_of(wanda.score(linear.weight, moments).square())
            size = linear.shape[0] * linear.shape[1]
            curves[key_of(block.index, linear.name)] = "weight", Curve(FINE, 1, size / FINE, points)
        job.step(f"layer {block.index}")
        del block
    return curves


def _owl(job: Job) -> dict[str, float]:
    """Layers with many outliers give less, of every kind."""
    ratios: list[float] = []
    for block in walk(job.streamed, job.tokens, layers=job.kept, budget=job.budget, work=job.work):
        if block.index in job.rules.protected:
            continue
        counts = [outliers(wanda.score(x.weight, moments)) for x, moments in block.statistics(wanda.METHOD.needs)]
        ratios.append(sum(above for above, _ in counts) / sum(size for _, size in counts))
        job.step(f"layer {block.index}")
        del block
    shares: dict[str, float] = {}
    for kind in (*sorted(job.rules.unit_kinds), *(["weight"] if weighs(job) else [])):
        wanted = _going(job, kind) if kind in UNIT_KINDS else job.config.sparsities[kind]
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
                count = keep_count(site.units, level, site.groups, multiple(job.config, site))
                if site.least <= count < site.units:
                    found[Candidate(index, kind, 1 - count / site.units)] = None
        if weighs(job):
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
    tokens, loss = job.tokens[:SEQUENCES], job.rules.gradient_needs
    counts = None if job.counts is None else job.counts[:SEQUENCES]
    where = (job.step, job.budget, job.work, counts)
    return dict(
        zip(
            candidates,
            divergences(job.streamed, tokens, candidates, cut, job.kept, loss, job.gradients, *where),
            strict=True,
        )
    )


def _measured(job: Job, levels: tuple[float, ...]) -> dict[str, tuple[str, Curve]]:
    """Curves as measured, site by site."""
    found = measure(job, levels)
    curves: dict[str, tuple[str, Curve]] = {}
    for layer, kind in dict.fromkeys((c.layer, c.kind) for c in found):
        points = smooth([(c.level, kl) for c, kl in found.items() if (c.layer, c.kind) == (layer, kind)])
        if kind in UNIT_KINDS:
            curve = _site_curve(job, [s for s in job.sites(layer) if s.kind == kind], points)
        else:
            size = sum(x.shape[0] * x.shape[1] for x in job.linears(layer))
            curve = Curve(FINE, 1, size / FINE, points)
        curves[key_of(layer, kind)] = kind, curve
    return curves
