"""The configuration of a pruned checkpoint, from the shapes that its layers have.

    widths = {i: layer_widths(layer, family, config, head_dim) for i, layer in enumerate(layers)}
    new = uniform_config(config, family, widths, head_dim) or uneven_config(config, family, widths, head_dim)

If all layers have the same widths and the stock class takes them, the stock configuration says so and
nothing else is needed to load the checkpoint. Otherwise each layer's widths go into `per_layer_config`
(transformers' own key), and `modeling_secateur.py`, which builds such models, travels along.

Configurations are plain dicts here, as in config.json.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import MODEL_MAPPING, AutoConfig

from secateur.model.architectures import Family, join
from secateur.model.classes import MODULE, auto_class, stock_class
from secateur.model.json_files import Json
from secateur.model.linears import has_weight, parameter_shape, submodule
from secateur.model.sites import head_counts
from secateur.model.uneven_keys import UNEVEN_KEYS
from secateur.model.widths import detected_widths

HEADS, KV_HEADS = "num_attention_heads", "num_key_value_heads"
Widths = Json  # a part of one: configuration key -> a layer's own value


def layer_widths(layer: nn.Module, family: Family, config: Any, head_dim: int) -> Widths:
    """Every width of one layer under the name that its configuration class has for it, and `skip`.

    Args:
        layer: whole or cut.
        config: the `transformers` configuration that the layer was built from.
        head_dim: inputs of the attention output per query head.
    """
    if family.anatomies:
        return detected_widths(layer, family)
    a, f, e = family.attention, family.ffn, family.experts
    widths: Widths = {}
    skip = []
    if has_weight(layer, join(a.path, a.o)):
        heads, kv_heads = head_counts(layer, family, head_dim)
        widths |= {HEADS: heads, KV_HEADS: kv_heads} if hasattr(config, KV_HEADS) else {HEADS: heads}
    else:
        skip.append("attention")
    if e is not None and submodule(layer, e.path) is not None:
        count, _, width = layer.get_parameter(f"{e.path}.{e.down}").shape
        widths |= {e.count_key: count, e.width_key: width}
    elif has_weight(layer, join(f.path, f.down)):
        widths[f.width_key] = parameter_shape(layer, join(f.path, f.down))[1]
    else:
        skip.append("ffn")
    return widths | ({"skip": skip} if skip else {})


def layer_overrides(layer: nn.Module, family: Family, config: Any, head_dim: int) -> Widths:
    """The layer's entry of `per_layer_config`: its widths where they differ from the configuration's."""
    return _overrides(layer_widths(layer, family, config, head_dim), config.to_dict())


def _overrides(widths: Widths, config: Json) -> Widths:
    known = _class_of(config).attribute_map
    return {key: value for key, value in widths.items() if key == "skip" or config.get(known.get(key, key)) != value}


def uneven_config(config: Json, family: Family, widths: dict[int, Widths], head_dim: int) -> Json:
    """The configuration of a checkpoint that needs the bundled modelling file.

    The global widths stay as they are: the stock classes check them against each other.

    Args:
        widths: layer -> its `layer_widths`, for every layer that the configuration counts.
    """
    new = _stock(config)
    # A stock model whose FFN width is left to a default (GPT-2) states it per layer: that's the same.
    overrides = {index: _overrides(own, new) for index, own in sorted(widths.items())}
    heads_differ = any(HEADS in own or KV_HEADS in own for own in overrides.values())
    if heads_differ:
        new["head_dim"] = head_dim
    new["per_layer_config"] = {str(index): own for index, own in overrides.items() if own}
    # The stock configuration classes read the global widths when they check themselves.
    new["allow_global_per_layer_attribute_access"] = True
    consumer = join(family.attention.path, family.attention.o).removeprefix(f"{family.attention.path}.")
    narrow = {"attention": family.attention.path, "head_dim": head_dim, "readers": [consumer]}
    new["secateur_narrow"] = narrow if family.heads == "fixed" and heads_differ else None
    new["secateur_skip"] = {block: list(family.modules_of(block)) for block in ("attention", "ffn")}
    made = AutoConfig.for_model(**_stock(config))
    head, base = stock_class(made).__name__, MODEL_MAPPING[type(made)].__name__
    named = {auto_class(made).__name__: head, "AutoModel": base}
    new["auto_map"] = {auto: f"{MODULE}.Pruned{name}" for auto, name in named.items()}
    new["architectures"] = [f"Pruned{head}"]
    return new


def uniform_config(config: Json, family: Family, widths: dict[int, Widths], head_dim: int) -> Json | None:
    """The stock configuration of a checkpoint whose layers all have these widths.

    Returns:
        None if the layers differ, or if the stock class has no configuration that gives these shapes.
    """
    common: Widths = {}
    for own in widths.values():
        for key, value in own.items():
            if key == "skip" or common.setdefault(key, value) != value:
                return None
    new = _stock(config)
    changed = _overrides(common, new)
    # Under the name that the configuration stores: with both, the other one would win on loading.
    stored = _class_of(new).attribute_map
    new |= {key if key in (HEADS, KV_HEADS) else stored.get(key, key): value for key, value in changed.items()}
    if HEADS in changed or KV_HEADS in changed:
        return with_heads(new, family, head_dim)
    return _named(new)


def with_heads(config: Json, family: Family, head_dim: int) -> Json | None:
    """The configuration with its head size stated, so that the head counts in it may be any, if the stock
    class allows that; Llama becomes Mistral, which computes the same, where only Mistral does."""
    if family.heads == "fixed" or config[HEADS] % config.get(KV_HEADS, config[HEADS]):
        return None
    new = config | {"head_dim": head_dim}
    if builds(new):
        return _named(new)
    if family.relabel is None or any(new.get(flag) for _, flag in family.bias_flags):
        return None
    # The other class has windows by default; a model that is relabelled has none.
    new |= {"model_type": family.relabel, "sliding_window": None}
    return _named(new) if builds(new) else None


@dataclass(frozen=True)
class LegalHeads:
    """Head counts that a checkpoint may have in all of its layers and still load with the stock class.

    Args:
        kv_groups: KV heads, each with its query heads.
        query_heads: query heads, with all KV heads there; the same number in each KV group.
        relabelled: the `model_type` that counts outside `own` are saved as, or None.
        own: query head counts that keep the model's own type.
    """

    kv_groups: tuple[int, ...]
    query_heads: tuple[int, ...]
    relabelled: str | None
    own: tuple[int, ...]


def legal_heads(family: Family, config: Json, head_dim: int) -> LegalHeads:
    """Found by building each configuration. The counts that the checkpoint has are always among them;
    FFN channels need no such list, since every class takes any number of them."""
    config = _stock(config)
    heads = _read(config, HEADS)
    kv_heads = config.get(KV_HEADS) or heads
    found: dict[tuple[int, int], Json] = {}
    groups = [(k * heads // kv_heads, k) for k in range(1, kv_heads + 1)]
    queries = [(h, kv_heads) for h in range(kv_heads, heads + 1, kv_heads)]
    for q, kv in {*groups, *queries}:
        counts = {HEADS: q, KV_HEADS: kv} if KV_HEADS in config else {HEADS: q}
        made = config if (q, kv) == (heads, kv_heads) else with_heads(config | counts, family, head_dim)
        if made is not None:
            found[q, kv] = made
    own = {q for (q, _), made in found.items() if made["model_type"] == config["model_type"]}
    return LegalHeads(
        tuple(kv for q, kv in groups if (q, kv) in found),
        tuple(q for q, kv in queries if (q, kv) in found),
        family.relabel if len(own) < len({q for q, _ in found}) else None,
        tuple(sorted(own)),
    )


def _stock(config: Json) -> Json:
    """A copy without what an earlier uneven save has added."""
    return {key: value for key, value in copy.deepcopy(config).items() if key not in UNEVEN_KEYS}


def _named(config: Json) -> Json:
    return config | {"architectures": [stock_class(AutoConfig.for_model(**config)).__name__]}


def _class_of(config: Json) -> Any:
    return type(AutoConfig.for_model(config["model_type"]))


def _read(config: Json, key: str) -> Any:
    return config[_class_of(config).attribute_map.get(key, key)]


def builds(config: Json) -> bool:
    """Whether the configuration class takes these values."""
    try:
        AutoConfig.for_model(**config)
    except Exception:  # each configuration class raises its own kinds
        return False
    return True
