"""What the units of one Linear may be, the likeliest first: which norms are corrected, which sizes modules state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn
from transformers.pytorch_utils import Conv1D

from secateur.model.anatomy import Form, Item, Owned, Segment, Size, Units, value_of, with_epsilons
from secateur.model.detection.layout import Blocks
from secateur.model.detection.trace import is_matrix

STATED = frozenset(("in_features", "out_features", "in_channels", "out_channels", "groups", "nf", "nx", "layer_idx"))
OTHERS = ("window", "rotary", "kernel", "chunk", "pattern", "pad", "top_k", "max_", "period", "rope", "embeddings")
STREAM = ("hidden_size", "embed_dim", "d_model", "hidden_dim")


def candidates(
    layer: nn.Module, consumer: str, readers: tuple[str, ...], blocks: Blocks, owned: list[Owned]
) -> Iterator[Units]:
    """With and without correcting norms, and with more or fewer of the sizes that modules state."""
    reading = [
        Owned(
            f"{name}.weight",
            0 if isinstance(layer.get_submodule(name), Conv1D) else 1,
            (Segment("head", (Item("head", blocks.width),)),),
        )
        for name in (consumer, *readers)
    ]
    norms = [i for i, o in enumerate(owned) if _is_norm(layer, o.parameter) and o.parameter.endswith("weight")]
    for corrected in dict.fromkeys([True, False]) if norms else (False,):
        own = [replace(o, rescale=corrected and i in norms) for i, o in enumerate(owned)]
        made = Units(
            kind="channel" if blocks.width == 1 else "head",
            label=consumer.rpartition(".")[0],
            consumer=consumer,
            width=blocks.width,
            owned=(*reading, *own),
            grouped=1 < blocks.groups < blocks.heads,
            shared_kv=blocks.groups == 1,
            runs=blocks.runs,
        )
        seen = []
        for without in ((), STREAM):
            sizes = _sizes(layer, made, blocks, without)
            if sizes not in seen:
                seen.append(sizes)
                yield with_epsilons(replace(made, sizes=sizes), layer)


def _is_norm(layer: nn.Module, name: str) -> bool:
    return "Norm" in type(layer.get_submodule(name.rpartition(".")[0])).__name__


def _sizes(layer: nn.Module, units: Units, blocks: Blocks, without: tuple[str, ...]) -> tuple[Size, ...]:
    """Attributes around the consumer that state a count or a width of these units."""
    heads, groups = blocks.heads, blocks.groups
    forms: list[Form] = [o.form for o in units.owned]
    forms += [segment.form for o in units.owned for segment in o.segments if segment.times != "once"]
    forms += [(1, 0, 0), (0, 1, 0)]
    parent = home(layer, units.consumer)
    out = []
    for name, module in layer.get_submodule(parent).named_modules(prefix=parent):
        for attribute, value in vars(module).items():
            if type(value) is not int or attribute in STATED or attribute in without or attribute.startswith("_"):
                continue
            if any(word in attribute for word in OTHERS):
                continue
            form = _form_of(attribute, value, forms, heads, groups)
            if form != "no":
                out.append(Size(name, attribute, form))  # type: ignore[arg-type]
    return tuple(out)


def _form_of(attribute: str, value: int, forms: list[Form], heads: int, groups: int) -> Form | str | None:
    if 1 < groups < heads:
        if value == heads // groups and any(word in attribute for word in ("groups", "rep", "per_")):
            return None
        if value == groups and any(word in attribute for word in ("key_value", "kv", "key_heads", "k_heads")):
            return (0, 1, 0)
    if value == heads:
        return (1, 0, 0)
    if 1 < groups < heads and value == groups:
        return (0, 1, 0)
    if value <= 1:
        return "no"
    fitting = [form for form in forms if value_of(form, heads, groups) == value]
    return fitting[0] if fitting else "no"


def home(layer: nn.Module, name: str) -> str:
    """The module around a matrix; one that holds nothing else (BERT's outputs) is a part of the one around it."""
    parent = name.rpartition(".")[0]
    alone = parent and sum(is_matrix(module) for module in layer.get_submodule(parent).modules()) == 1
    return parent.rpartition(".")[0] if alone else parent
