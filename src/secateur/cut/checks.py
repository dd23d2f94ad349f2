"""What a checkpoint can't give, found before the run, on its layers without weights."""

from __future__ import annotations

import math
from collections.abc import Callable

from secateur.config.configuration import Configuration
from secateur.config.plan import Plan
from secateur.cut.counts import asked, multiple
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.model.clients import refusal
from secateur.model.heads import BODY, head_of
from secateur.model.linears import linears_of
from secateur.model.remote_code import brings_code
from secateur.model.site_kinds import HEADS, KINDS, SUB_BLOCKS
from secateur.model.sites import Site
from secateur.numerics.patterns import Pattern


def sites_in(checkpoint: Checkpoint) -> list[Site]:
    """Every site of every layer."""
    return [site for sites in checkpoint.sites for site in sites]


def check_plan(plan: Plan, checkpoint: Checkpoint) -> None:
    """Refuses a plan that names what the model doesn't have, or keeps fewer experts than a token takes."""
    sites = sites_in(checkpoint)
    layers = checkpoint.template.get_submodule(checkpoint.family.layers)
    names = {site.name for site in sites}
    for index, layer in enumerate(layers.children()):
        names |= {f"layers.{index}.{linear.name}" for linear in linears_of(layer, checkpoint.family)}
    plan.check(checkpoint.config.model_type, checkpoint.layers, names)
    for site in sites:
        entry = plan.entry(site.name)
        if site.kind == "expert" and entry is not None and len(entry.keep or ()) < site.least:
            raise InputError(
                f"the plan keeps {len(entry.keep or ())} of {site.units} units of {site.name}, but a token takes "
                f"{site.least}; keep {site.least} or more"
            )


def check_client(config: Configuration, checkpoint: Checkpoint, unit_kinds: frozenset[str]) -> None:
    """Refuses what the program that the result is for wouldn't load, or would undo.

    Raises:
        InputError: why, and what would work.
    """
    if config.client is None:
        return
    sites = frozenset(config.sites)
    reason = refusal(
        config.client,
        checkpoint.config.model_type,
        causal=checkpoint.family.causal,
        uneven=bool(unit_kinds) and (config.allocate != "local" or bool(config.protect)),
        heads=bool(unit_kinds & HEADS),
        latents=any(KINDS[kind].normed for kind in unit_kinds),
        layers="layer" in sites,
        attention="attention" in sites,
        ffn="ffn" in sites,
    )
    if reason is not None:
        raise InputError(reason)


def check_class(config: Configuration, checkpoint: Checkpoint, unit_kinds: frozenset[str]) -> None:
    """Refuses layers that would differ where the class comes with the checkpoint: only those of transformers can be
    given the modelling file that such layers need.

    Raises:
        InputError: what would work.
    """
    if not brings_code(getattr(checkpoint.whole_config, "auto_map", None)):
        return
    unlike = sorted((unit_kinds - {*checkpoint.family.stock}) | ({*config.sites} & {*SUB_BLOCKS}))
    spread = bool(unit_kinds) and (config.allocate != "local" or bool(config.protect))
    if unlike or spread:
        what = f"site '{unlike[0]}'" if unlike else "layers of different widths"
        able = ", ".join(["weight", *checkpoint.family.stock])
        raise InputError(f"{what}: not with a class that comes with its checkpoint; cut all layers alike: {able}")


def check_comparable(checkpoint: Checkpoint) -> None:
    """Refuses what compares predictions of a model that has none.

    Raises:
        InputError: in one line.
    """
    if head_of(checkpoint.whole_config) is BODY:
        raise InputError(
            f"{checkpoint.path}: gives hidden states, and what it predicts would be compared; use --allocate local, "
            "global or owl"
        )


def check_counts(
    config: Configuration, checkpoint: Checkpoint, unit_kinds: frozenset[str], count: Callable[[Site], int]
) -> None:
    """A sparsity that rounds to no unit at all, of any site of a kind, would do nothing without a word; nor may
    it be of a kind that the model lacks, or leave fewer units than must stay."""
    everything = sites_in(checkpoint)
    for kind in sorted(unit_kinds):
        sites = [site for site in everything if site.kind == kind]
        if not sites:
            raise InputError(f"site '{kind}': {checkpoint.config.model_type} models like this one have none")
        s = config.sparsities[asked(config, kind)]
        largest = max(sites, key=lambda site: site.units)
        if all(count(site) >= site.units for site in sites):
            units, step = largest.units, math.lcm(largest.groups, multiple(config, largest))
            least = f"they go {step} at a time, so give {step / units:.3g} or more"
            remedy = least if step < units else f"no multiple of {step} is below {units}"
            raise InputError(f"sparsity {s:g} takes none of {units} {kind} units away; {remedy}")
        for site in sites:
            if count(site) < site.least:
                most = 1 - site.least / site.units
                remedy = f"give {most:.3g} or less" if most > 0 else "none may go"
                raise InputError(
                    f"sparsity {s:g} leaves {count(site)} of {site.units} experts, but a token takes {site.least}; "
                    + remedy
                )


def check_pattern(pattern: Pattern, checkpoint: Checkpoint) -> None:
    """N:M must divide every width."""
    layers = checkpoint.template.get_submodule(checkpoint.family.layers)
    for index, layer in enumerate(layers.children()):
        for linear in linears_of(layer, checkpoint.family):
            pattern.validate(linear.shape[1], f"layers.{index}.{linear.name}")
