"""What a recipe or a plan means for this checkpoint: which kinds go, how much of each, what is left alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from secateur.config import plan as plans
from secateur.config.plan import Plan
from secateur.config.presets import Masks
from secateur.config.recipe import Recipe
from secateur.cut.checks import check_counts, check_pattern, check_plan
from secateur.cut.counts import asked, keep_counts, layers_to_drop, protected_layers, sub_blocks_to_drop
from secateur.cut.units import UnitRules
from secateur.errors import InputError
from secateur.methods import METHODS, Method
from secateur.model.architectures import join
from secateur.model.biases import bias_flags
from secateur.model.checkpoint import Checkpoint
from secateur.model.sites import Site
from secateur.model.uneven import HEADS, KV_HEADS, with_heads
from secateur.numerics.keep_counts import keep_count
from secateur.numerics.patterns import Pattern
from secateur.numerics.targets import Target
from secateur.reconstruct.tune import Tuning

UNIT_KINDS = frozenset(plans.UNIT_KINDS)
REFITTED = UNIT_KINDS - {"expert"}  # a Linear reads their units, and is solved for what the target says


@dataclass(frozen=True)
class Rules:
    """Decisions that hold for the whole run.

    Args:
        unit_kinds: structured kinds to cut.
        bias_flags: consumer -> config flag to switch on, so that refits may use a bias.
        protected: layers that nothing is cut from.
        sub_blocks: kind -> how many of them go.
        dropped: (layer, kind) of those that do, once they are chosen.
        weight_method: for single weights, None = weights are left alone.
        target: what Linears are solved for, see `numerics.targets`.
        sequential: gather statistics anew after each group of Linears.
        tuning: block reconstruction; None = off.
        masks: of single weights while a block is tuned, see `reconstruct.masks`.
        notes: what a report should say about these decisions.
    """

    units: UnitRules
    unit_kinds: frozenset[str]
    bias_flags: dict[str, str]
    protected: frozenset[int]
    layers_to_drop: int
    weight_method: Method | None
    pattern: Pattern
    weight_sparsity: Callable[[int], Callable[[str], float]]
    plan: Plan | None
    target: Target
    sequential: bool
    tuning: Tuning | None
    masks: Masks
    notes: tuple[str, ...] = ()
    sub_blocks: Mapping[str, int] = field(default_factory=dict)
    dropped: frozenset[tuple[int, str]] = frozenset()

    @property
    def gradient_needs(self) -> frozenset[str]:
        """What the methods need to know of the loss, see `methods.contract.GRADIENTS`."""
        methods = (self.units.method if self.unit_kinds else None, self.weight_method)
        return frozenset(need for method in methods if method is not None for need in method.loss)

    @property
    def needs_dense(self) -> bool:
        """Whether the untouched model's hidden states are needed beside the pruned one's."""
        solved = bool(self.unit_kinds & REFITTED) or self.weight_method is not None
        cut = solved or bool(self.unit_kinds) or bool(self.dropped)
        return (solved and self.target != "pruned") or (cut and self.tuning is not None)

    @classmethod
    def of(cls, recipe: Recipe, checkpoint: Checkpoint, plan: Plan | None, counted: bool = True) -> Rules:
        """Derives the rules; refuses what this checkpoint can't give.

        Args:
            counted: with how many layers and sub-blocks go; otherwise whoever asks puts that in.

        Raises:
            InputError: a protected layer that isn't there, more layers to drop than may go, a pattern that
                doesn't fit a Linear.
        """
        if plan is not None:
            check_plan(plan, checkpoint)
        kinds = plan.kinds if plan is not None else frozenset(recipe.sites)
        unit_kinds = unit_kinds_of(kinds, checkpoint) if plan is None else kinds & UNIT_KINDS
        protected = protected_layers(recipe, checkpoint)
        counts, steps = keep_counts(recipe), recipe.chosen_steps
        chosen = plan is None and counted
        layers = layers_to_drop(recipe, checkpoint, protected) if chosen else 0
        if chosen:
            check_counts(recipe, checkpoint, unit_kinds, counts)
        flags, notes = _flags(recipe, checkpoint, unit_kinds, plan)
        weighty = "weight" in kinds
        pattern = _pattern(recipe, plan) if weighty else Pattern()
        if weighty:
            check_pattern(pattern, checkpoint)
        return cls(
            units=UnitRules(
                recipe.method_for("channel") if plan is None and unit_kinds & REFITTED else None,
                counts,
                _planned(plan),
                recipe.refit,
                frozenset(_consumers(checkpoint, unit_kinds)) if recipe.bias != "none" else frozenset(),
                recipe.chosen_target,
                recipe.seed,
                recipe.explain,
                recipe.bias == "add" and not recipe.refit,
                recipe.method_for("expert") if plan is None and "expert" in unit_kinds else None,
                recipe.merge_experts,
            ),
            unit_kinds=unit_kinds,
            bias_flags=flags,
            protected=protected,
            layers_to_drop=layers,
            weight_method=_weight_method(recipe, plan) if weighty else None,
            pattern=pattern,
            weight_sparsity=_sparsities(recipe, plan),
            plan=plan,
            target=recipe.chosen_target,
            sequential=recipe.chosen_sequential,
            tuning=_tuning(recipe) if steps else None,
            masks=recipe.chosen_masks,
            notes=notes,
            sub_blocks=sub_blocks_to_drop(recipe, checkpoint, protected, layers) if chosen else {},
        )


def _tuning(recipe: Recipe) -> Tuning:
    predictions = recipe.chosen_objective == "predictions"
    return Tuning(recipe.chosen_steps, seed=recipe.seed, window=recipe.window, predictions=predictions)


def _planned(plan: Plan | None) -> Callable[[Site], tuple[int, ...] | None]:
    """Site -> the units that a plan keeps of it (all, if it says nothing); None = choose."""
    if plan is None:
        return lambda site: None

    def kept(site: Site) -> tuple[int, ...]:
        entry = plan.entry(site.name)
        if entry is None or entry.keep is None:
            return tuple(range(site.units))
        if entry.units != site.units:
            raise InputError(f"the plan says {site.name} has {entry.units} units, the model has {site.units}")
        return entry.keep

    return kept


def unit_kinds_of(kinds: frozenset[str], checkpoint: Checkpoint) -> frozenset[str]:
    """Where every KV group has one query head (no grouped attention), a query head is its KV group."""
    config = checkpoint.config
    heads = config.num_attention_heads
    grouped = (getattr(config, "num_key_value_heads", None) or heads) < heads
    chosen = kinds & UNIT_KINDS
    if "query_head" in chosen and not grouped:
        chosen = (chosen - {"query_head"}) | {"kv_group"}
    return chosen


def _consumers(checkpoint: Checkpoint, unit_kinds: frozenset[str]) -> list[str]:
    a, f = checkpoint.family.attention, checkpoint.family.ffn
    consumers = [join(a.path, a.o)] if unit_kinds & {"query_head", "kv_group"} else []
    return [*consumers, join(f.path, f.down)] if "channel" in unit_kinds else consumers


def _flags(
    recipe: Recipe, checkpoint: Checkpoint, unit_kinds: frozenset[str], plan: Plan | None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Config flags that biases for the refit need, unless they would cost the stock class its loading."""
    if recipe.bias != "add":
        return {}, ()
    flags = bias_flags(checkpoint, frozenset(_consumers(checkpoint, unit_kinds)))
    if flags and unit_kinds & {"query_head", "kv_group"}:
        counts = _heads_after(recipe, checkpoint, unit_kinds, plan)
        config = checkpoint.config.to_dict() | counts
        family, head_dim = checkpoint.family, checkpoint.head_dim
        on = dict.fromkeys(flags.values(), True)
        if with_heads(config, family, head_dim) and not with_heads(config | on, family, head_dim):
            # Such head counts load under another model type (Llama as Mistral), which has no biases.
            return {}, ("no bias in the refits: the stock class that takes these head counts has none",)
    return flags, ()


def _heads_after(
    recipe: Recipe, checkpoint: Checkpoint, unit_kinds: frozenset[str], plan: Plan | None
) -> dict[str, int]:
    """Query and KV heads that a layer will have (the first cut layer of a plan)."""
    heads = checkpoint.config.num_attention_heads
    kv_heads = getattr(checkpoint.config, "num_key_value_heads", None) or heads
    group = heads // kv_heads
    if plan is not None:
        kept = {entry.kind: len(entry.keep) for entry in reversed(plan.entries) if entry.keep is not None}
        kv_heads = kept.get("kv_group", kv_heads)
        return {HEADS: kept.get("query_head", kv_heads * group), KV_HEADS: kv_heads}
    if "kv_group" in unit_kinds:
        kv_heads = keep_count(kv_heads, recipe.sparsity_for(asked(recipe, "kv_group")))
    if "query_head" in unit_kinds:
        group = keep_count(group, recipe.sparsity_for("query_head"))
    return {HEADS: kv_heads * group, KV_HEADS: kv_heads}


def _weight_method(recipe: Recipe, plan: Plan | None) -> Method:
    if plan is None:
        return recipe.method_for("weight")
    name = next(entry.method for entry in plan.entries if entry.kind == "weight")
    if name not in METHODS:
        raise InputError(f"the plan names method '{name}', which is unknown")
    return METHODS[name]


def _pattern(recipe: Recipe, plan: Plan | None) -> Pattern:
    if plan is None:
        return Pattern.parse(recipe.pattern)
    return Pattern.parse(next(e.pattern or "free" for e in plan.entries if e.kind == "weight"))


def _sparsities(recipe: Recipe, plan: Plan | None) -> Callable[[int], Callable[[str], float]]:
    """layer -> (Linear -> fraction that goes)."""
    if plan is None:
        return lambda layer: lambda linear: recipe.sparsity_for("weight")

    def of(layer: int) -> Callable[[str], float]:
        def sparsity(linear: str) -> float:
            entry = plan.entry(f"layers.{layer}.{linear}")
            return 0.0 if entry is None else entry.sparsity

        return sparsity

    return of
