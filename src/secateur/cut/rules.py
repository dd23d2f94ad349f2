"""What a recipe or a plan means for this checkpoint: which kinds go, how much of each, what is left alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from secateur.config.configuration import Configuration
from secateur.config.plan import Plan
from secateur.config.presets import Masks
from secateur.cut.checks import check_class, check_client, check_counts, check_pattern, check_plan
from secateur.cut.counts import asked, keep_counts, layers_to_drop, protected_layers, sub_blocks_to_drop
from secateur.cut.units import UnitRules
from secateur.errors import InputError
from secateur.methods import METHODS, Method
from secateur.model.architectures import join
from secateur.model.biases import bias_flags
from secateur.model.checkpoint import Checkpoint
from secateur.model.clients import knows_stock_alone, notes_of
from secateur.model.site_kinds import HEADS, REFITTED, UNIT_KINDS, units_of
from secateur.model.sites import Site
from secateur.model.uneven import HEADS as QUERY_HEADS
from secateur.model.uneven import KV_HEADS, with_heads
from secateur.numerics.keep_counts import keep_count
from secateur.numerics.patterns import Pattern
from secateur.numerics.targets import Target
from secateur.reconstruct.tune import Tuning, rate_of


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
    target: Target
    sequential: bool
    tuning: Tuning | None
    masks: Masks
    layers_to_drop: int = 0
    weight_method: Method | None = None
    pattern: Pattern = field(default_factory=Pattern)
    weight_sparsity: Callable[[int], Callable[[str], float]] = lambda layer: lambda linear: 0.0
    plan: Plan | None = None
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

    @property
    def needs_inputs(self) -> bool:
        """Whether anything depends on what the calibration sequences become on their way through the model."""
        method = self.weight_method
        looks = method is not None and bool(method.statistics | method.loss)
        return looks or self.needs_dense or bool(self.unit_kinds) or self.tuning is not None

    @classmethod
    def from_recipe(cls, config: Configuration, checkpoint: Checkpoint, *, counted: bool = True) -> Rules:
        """What was asked for, of this checkpoint.

        Args:
            counted: with how many layers and sub-blocks go; otherwise whoever asks puts that in.

        Raises:
            InputError: what this checkpoint can't give: a protected layer that isn't there, more layers to drop than
                may go, a pattern that doesn't fit a Linear.
        """
        unit_kinds = unit_kinds_of(frozenset(config.sites), checkpoint)
        check_client(config, checkpoint, unit_kinds)
        check_class(config, checkpoint, unit_kinds)
        protected = protected_layers(config, checkpoint)
        layers, counts = 0, keep_counts(config)
        if counted:
            layers = layers_to_drop(config, checkpoint, protected)
            check_counts(config, checkpoint, unit_kinds, counts)
            _check_heads(config, checkpoint, unit_kinds)
        base = cls._repairing(config, checkpoint, unit_kinds, lambda: _heads_asked(config, checkpoint, unit_kinds))
        weights = "weight" in config.sites
        if weights:
            check_pattern(config.pattern, checkpoint)
        units = replace(
            base.units,
            method=config.method("channel") if unit_kinds & REFITTED else None,
            expert_method=config.method("expert") if unit_kinds - REFITTED else None,
            keep_count=counts,
        )
        return replace(
            base,
            notes=(*base.notes, *(notes_of(config.client, checkpoint.head_dim) if config.client is not None else ())),
            units=units,
            layers_to_drop=layers,
            sub_blocks=sub_blocks_to_drop(config, checkpoint, protected, layers) if counted else {},
            weight_method=config.method("weight") if weights else None,
            pattern=config.pattern if weights else Pattern(),
            weight_sparsity=lambda layer: lambda linear: config.sparsities["weight"],
        )

    @classmethod
    def from_plan(cls, plan: Plan, config: Configuration, checkpoint: Checkpoint) -> Rules:
        """What a plan chose, repaired as the configuration says.

        Raises:
            InputError: the plan doesn't fit this checkpoint.
        """
        check_plan(plan, checkpoint)
        unit_kinds = plan.kinds & frozenset(UNIT_KINDS)
        base = cls._repairing(config, checkpoint, unit_kinds, lambda: _heads_planned(plan, checkpoint))
        base = replace(base, plan=plan, units=replace(base.units, planned=partial(_planned, plan)))
        weights = next((entry for entry in plan.entries if entry.kind == "weight"), None)
        if weights is None:
            return base
        pattern = Pattern.parse(weights.pattern or "free")
        check_pattern(pattern, checkpoint)
        return replace(
            base,
            weight_method=METHODS[weights.method],
            pattern=pattern,
            weight_sparsity=lambda layer: partial(_planned_sparsity, plan, layer),
        )

    @classmethod
    def _repairing(
        cls,
        config: Configuration,
        checkpoint: Checkpoint,
        unit_kinds: frozenset[str],
        heads: Callable[[], dict[str, int]],
    ) -> Rules:
        """Nothing goes yet; how what is left is repaired.

        Args:
            heads: query and KV heads that a layer will have.
        """
        protected = protected_layers(config, checkpoint)
        flags, notes = _flags(config, checkpoint, unit_kinds, heads)
        tuning = Tuning(
            config.steps,
            rate_of(config.masks, int(checkpoint.config.hidden_size)),
            seed=config.seed,
            window=config.window,
            predictions=config.objective == "predictions",
            compiled=config.compile_blocks,
        )
        units = UnitRules(
            method=None,
            keep_count=lambda site: site.units,
            planned=lambda site: None,
            refit=config.refit,
            biased=frozenset(_consumers(checkpoint, unit_kinds)) if config.bias != "none" else frozenset(),
            target=config.target,
            seed=config.seed,
            explain=config.explain,
            mean_into_bias=config.bias == "add" and not config.refit,
            merge=config.merge_experts,
        )
        return cls(
            units=units,
            unit_kinds=unit_kinds,
            bias_flags=flags,
            protected=protected,
            target=config.target,
            sequential=config.sequential,
            tuning=tuning if config.steps else None,
            masks=config.masks,
            notes=notes,
        )


def _planned(plan: Plan, site: Site) -> tuple[int, ...]:
    """The units that a plan keeps of a site: all, if it says nothing."""
    entry = plan.entry(site.name)
    if entry is None or entry.keep is None:
        return tuple(range(site.units))
    if entry.units != site.units:
        raise InputError(f"the plan says {site.name} has {entry.units} units, the model has {site.units}")
    return entry.keep


def _planned_sparsity(plan: Plan, layer: int, linear: str) -> float:
    """The fraction of a Linear's weights that a plan takes."""
    entry = plan.entry(f"layers.{layer}.{linear}")
    return 0.0 if entry is None else entry.sparsity


def unit_kinds_of(kinds: frozenset[str], checkpoint: Checkpoint) -> frozenset[str]:
    """Where every KV group has one query head (no grouped attention), a query head is its KV group."""
    config = checkpoint.config
    chosen = kinds & frozenset(UNIT_KINDS)
    if checkpoint.family.anatomies:
        have = {site.kind for sites in checkpoint.sites for site in sites}
        lacks = "query_head" in chosen and "query_head" not in have and "kv_group" in have
        return (chosen - {"query_head"}) | {"kv_group"} if lacks else chosen
    heads = config.num_attention_heads
    grouped = (getattr(config, "num_key_value_heads", None) or heads) < heads
    if "query_head" in chosen and not grouped:
        chosen = (chosen - {"query_head"}) | {"kv_group"}
    return chosen


def _consumers(checkpoint: Checkpoint, unit_kinds: frozenset[str]) -> list[str]:
    """The Linears that read the units of these kinds."""
    if checkpoint.family.anatomies:
        every = (site for sites in checkpoint.sites for site in sites)
        return sorted({site.consumer for site in every if site.kind in unit_kinds & REFITTED})
    a, f = checkpoint.family.attention, checkpoint.family.ffn
    reading = {"attention": join(a.path, a.o), "ffn": join(f.path, f.down)}
    return [consumer for part, consumer in reading.items() if unit_kinds & REFITTED & units_of(part)]


def _flags(
    config: Configuration,
    checkpoint: Checkpoint,
    unit_kinds: frozenset[str],
    heads: Callable[[], dict[str, int]],
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Config flags that biases for the refit need, unless they would cost the stock class its loading."""
    if config.bias != "add":
        return {}, ()
    flags = bias_flags(checkpoint, frozenset(_consumers(checkpoint, unit_kinds)))
    if flags and unit_kinds & HEADS:
        values = checkpoint.config.to_dict() | heads()
        family, head_dim = checkpoint.family, checkpoint.head_dim
        on = dict.fromkeys(flags.values(), True)
        if with_heads(values, family, head_dim) and not with_heads(values | on, family, head_dim):
            # Such head counts load under another model type (Llama as Mistral), which has no biases.
            return {}, ("no bias in the refits: the stock class that takes these head counts has none",)
    return flags, ()


def _check_heads(config: Configuration, checkpoint: Checkpoint, unit_kinds: frozenset[str]) -> None:
    """Refuses head counts for which there is no stock class, where the result's program knows none but those.

    Raises:
        InputError: the counts.
    """
    if config.client is None or not unit_kinds & HEADS or not knows_stock_alone(config.client):
        return
    heads = _heads_asked(config, checkpoint, unit_kinds)
    values = checkpoint.config.to_dict() | heads
    if with_heads(values, checkpoint.family, checkpoint.head_dim) is None:
        raise InputError(
            f"{config.client} runs stock classes alone, and none has {heads[QUERY_HEADS]} heads, {heads[KV_HEADS]} "
            f"of keys; secateur inspect {checkpoint.path} lists the counts that load"
        )


def _heads_asked(config: Configuration, checkpoint: Checkpoint, unit_kinds: frozenset[str]) -> dict[str, int]:
    """Query and KV heads that a layer will have."""
    kv_heads, group = _heads_now(checkpoint)
    if "kv_group" in unit_kinds:
        kv_heads = keep_count(kv_heads, config.sparsities[asked(config, "kv_group")])
    if "query_head" in unit_kinds:
        group = keep_count(group, config.sparsities["query_head"])
    return {QUERY_HEADS: kv_heads * group, KV_HEADS: kv_heads}


def _heads_planned(plan: Plan, checkpoint: Checkpoint) -> dict[str, int]:
    """The same of the first layer that a plan cuts."""
    kv_heads, group = _heads_now(checkpoint)
    kept = {entry.kind: len(entry.keep) for entry in reversed(plan.entries) if entry.keep is not None}
    kv_heads = kept.get("kv_group", kv_heads)
    return {QUERY_HEADS: kept.get("query_head", kv_heads * group), KV_HEADS: kv_heads}


def _heads_now(checkpoint: Checkpoint) -> tuple[int, int]:
    """KV heads of a layer, and query heads of each."""
    heads = checkpoint.config.num_attention_heads
    kv_heads = getattr(checkpoint.config, "num_key_value_heads", None) or heads
    return kv_heads, heads // kv_heads
