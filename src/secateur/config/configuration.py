"""What a recipe means, with every choice made: named methods, presets and patterns looked up once.

Stages read the fields of a `Configuration`; nothing in it is left to interpret.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur.config.fields import LIMITS, Settings
from secateur.config.presets import PRESETS, Masks, Objective, Preset, Window
from secateur.config.quantities import parse_bytes
from secateur.methods import METHODS
from secateur.model.clients import CLIENTS, Client
from secateur.model.site_kinds import KINDS
from secateur.numerics.patterns import Pattern

if TYPE_CHECKING:
    from secateur.methods import Method
    from secateur.numerics.targets import Target

STEPS_FOR_MASKS = 100  # in fewer, a mask that is found while tuning is no better than one that is chosen


@dataclass(frozen=True)
class Configuration:
    """The settings of a run that decide what goes and how the rest is repaired.

    Args:
        sites: the kinds of sites that were asked for.
        method_names: kind of site -> what scores it, for every kind there is.
        sparsities: kind that was asked for -> the fraction that goes of each of its sites; empty as long
            as it isn't known which ones reach the target that was given.
        pooled: one sparsity was given for all kinds together.
        pattern: of the zeros of single weights.
        steps: of block reconstruction; 0 = none.
        round_to: channels that stay are a multiple of this many, and hidden dimensions of `hidden_step`.
        client: what the result has to run in, see `model.clients`.
        memory: bytes for hidden states; None = what is free.
    """

    sites: tuple[str, ...]
    method_names: Mapping[str, str]
    sparsities: Mapping[str, float]
    pooled: bool
    allocate: str
    search: str
    pattern: Pattern
    target: Target
    sequential: bool
    steps: int
    masks: Masks
    objective: Objective
    window: Window
    compile_blocks: bool
    round_to: int
    hidden_step: int
    client: str | None
    protect: tuple[int, ...]
    refit: bool
    bias: str
    merge_experts: bool
    explain: bool
    seed: int
    memory: int | None

    def method(self, kind: str) -> Method:
        """What scores this kind of site."""
        return METHODS[self.method_names[kind]]


def resolve(settings: Settings) -> Configuration:
    """Makes every choice that the settings leave open.

    Raises:
        ValueError: they say no sparsity for a kind of site that they name, or one that their pattern contradicts.
    """
    preset = preset_of(settings)
    target = settings.target or preset.target
    steps = preset.reconstruct if settings.reconstruct is None else settings.reconstruct
    # Side by side, the writers of a block would all make up for the same drift.
    sequential = preset.sequential or target == "residual"
    known = settings.sparsity is not None or budget_of(settings) is None
    masks = "kept" if steps < STEPS_FOR_MASKS else preset.masks
    return Configuration(
        sites=settings.sites,
        method_names={kind: method_name(settings, kind) for kind in KINDS},
        sparsities={kind: sparsity_of(settings, kind) for kind in settings.sites} if known else {},
        pooled=isinstance(settings.sparsity, float),
        allocate=settings.allocate,
        search=settings.search,
        pattern=Pattern.parse(settings.pattern),
        target=target,
        sequential=sequential if settings.sequential is None else settings.sequential,
        steps=steps,
        masks=settings.masks or masks,
        objective=settings.objective or (preset.objective if steps else "output"),
        window=settings.window,
        compile_blocks=settings.compile_blocks,
        round_to=math.lcm(settings.round_to, _client(settings).channels),
        hidden_step=math.lcm(settings.round_to, _client(settings).hidden),
        client=settings.client,
        protect=settings.protect,
        refit=settings.refit,
        bias=settings.bias,
        merge_experts=settings.merge_experts,
        explain=settings.explain,
        seed=settings.seed,
        memory=None if settings.memory is None else parse_bytes(settings.memory),
    )


def _client(settings: Settings) -> Client:
    return CLIENTS[settings.client or "transformers"]


def preset_of(settings: Settings) -> Preset:
    """The quality asked for; a method that is named alone is run as published, with nothing added."""
    return PRESETS[settings.quality or ("fast" if settings.method else "balanced")]


def budget_of(settings: Settings) -> str | None:
    """Which target stands in the place of a sparsity."""
    return next((key for key in LIMITS if getattr(settings, key) is not None), None)


def method_name(settings: Settings, kind: str) -> str:
    """The method that scores this kind of site: the first named one that can, else the default."""
    able = (name for name in settings.method if KINDS[kind].ability in METHODS.facts(name).prunes)
    return next(able, KINDS[kind].method or preset_of(settings).weights)


def sparsity_of(settings: Settings, kind: str) -> float:
    """Fraction that goes of each site of this kind.

    Raises:
        ValueError: the settings don't say, or say something that their pattern contradicts.
    """
    named = isinstance(settings.sparsity, dict)
    own = settings.sparsity.get(kind) if isinstance(settings.sparsity, dict) else settings.sparsity
    pattern = Pattern.parse(settings.pattern)
    if KINDS[kind].goes == "zeros" and pattern.sparsity is not None:
        # A number for all kinds is for the others, if there are any.
        meant = own is not None and (named or len(settings.sites) == 1)
        if meant and not math.isclose(own or 0, pattern.sparsity, abs_tol=0.005):
            raise ValueError(f"pattern {pattern} removes {pattern.sparsity:g}, but sparsity says {own:g}; give one")
        return pattern.sparsity
    if settings.sparsity is None:
        raise ValueError("no sparsity given; --sparsity 0.25 removes a quarter of each site")
    if own is None:
        raise ValueError(f"sparsity says nothing for site '{kind}'")
    return own
