"""Sites: what can be removed from a decoder layer, in equal units, and which weights each unit owns.

    Site(kind="channel", layer=3, units=172, ...)   172 FFN channels of layer 3
    site.cuts                                       the parameter slices that one unit owns
    site.consumer                                     the Linear that consumes the units

A site knows nothing about scores; a cut knows nothing about models. Both are derived from `families`
and the shapes of one layer, so they are the same for a layer on disk, on the meta device or in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from secateur.model.anatomy import has_tensor, tensor_of
from secateur.model.architectures import EXPERT_CHANNELS, ExpertModules, Family, join
from secateur.model.detected_sites import detected_sites
from secateur.model.expert_forms import experts_of
from secateur.model.linears import has_weight, is_transposed, parameter_shape, submodule
from secateur.model.site import Cut, Site, make_site

__all__ = ["Cut", "Site", "head_counts", "query_head_site", "sites_of"]


def sites_of(layer: nn.Module, family: Family, index: int, head_dim: int) -> list[Site]:
    """Lists every site of one decoder layer: query heads, KV groups, channels, experts, sub-blocks, the layer itself.

    Args:
        layer: the module, on any device (shapes only are read).
        family: what is known of the architecture, see `family_of`.
        index: its place among the layers.
        head_dim: inputs of the attention output Linear per query head.
    """
    if family.anatomies:
        return [
            *detected_sites(layer, family, index),
            *_expert_channel_sites(layer, family, index),
            *_expert_sites(layer, family, index),
            _whole("layer", layer, index, ("",), ""),
        ]
    return [
        *_attention_sites(layer, family, index, head_dim),
        *_channel_sites(layer, family, index),
        *_expert_sites(layer, family, index),
        *_whole_sites(layer, family, index),
    ]


def head_counts(layer: nn.Module, family: Family, head_dim: int) -> tuple[int, int]:
    """(query heads, KV heads) of a layer that has attention, from its shapes as they are."""
    a = family.attention
    heads = parameter_shape(layer, join(a.path, a.o))[1] // head_dim
    if a.fused is None:
        return heads, parameter_shape(layer, join(a.path, a.k))[0] // head_dim
    rows = parameter_shape(layer, join(a.path, a.fused))[0] // head_dim
    return heads, heads if a.layout == "interleaved" else (rows - heads) // 2


def _attention_sites(layer: nn.Module, family: Family, index: int, head_dim: int) -> Iterator[Site]:
    a = family.attention
    consumer = join(a.path, a.o)
    if not has_weight(layer, consumer):
        return
    heads, kv_heads = head_counts(layer, family, head_dim)
    group = heads // kv_heads
    q_cuts, kv_cuts = _head_cuts(layer, family, heads, kv_heads, head_dim)
    if group > 1:
        yield query_head_site(layer, family, index, head_dim)
    read = _matrix_cut(layer, consumer, 1, head_dim)
    cuts = (*(_widen(c, group) for c in q_cuts), *kv_cuts, _widen(read, group))
    yield make_site("kv_group", layer, index, kv_heads, cuts, consumer, head_dim * group)


def query_head_site(layer: nn.Module, family: Family, index: int, head_dim: int) -> Site:
    """The query heads of a layer that has attention, also where each is alone in its KV group."""
    consumer = join(family.attention.path, family.attention.o)
    heads, kv_heads = head_counts(layer, family, head_dim)
    q_cuts, _ = _head_cuts(layer, family, heads, kv_heads, head_dim)
    cuts = (*q_cuts, _matrix_cut(layer, consumer, 1, head_dim))
    return make_site("query_head", layer, index, heads, cuts, consumer, head_dim, groups=kv_heads)


def _head_cuts(
    layer: nn.Module, family: Family, heads: int, kv_heads: int, head_dim: int
) -> tuple[list[Cut], list[Cut]]:
    """What one query head, and what one KV head, owns of the Linears (and norms) that write q, k and v."""
    a = family.attention
    if a.fused is not None and a.layout == "interleaved":
        return [], _rows(layer, join(a.path, a.fused), 3 * head_dim)
    if a.fused is not None:
        fused, q_end, k_end = join(a.path, a.fused), heads * head_dim, (heads + kv_heads) * head_dim
        q = _rows(layer, fused, head_dim)
        kv = [*_rows(layer, fused, head_dim, q_end), *_rows(layer, fused, head_dim, k_end)]
        return q, kv
    q = _rows(layer, join(a.path, a.q), head_dim)
    kv = [*_rows(layer, join(a.path, a.k), head_dim), *_rows(layer, join(a.path, a.v), head_dim)]
    for norm, cuts in zip(a.width_norms, (q, kv), strict=False):
        cuts.append(Cut(f"{join(a.path, norm)}.weight", 0, head_dim, rescale=True))
    return q, kv


def _channel_sites(layer: nn.Module, family: Family, index: int) -> Iterator[Site]:
    if family.experts is not None and submodule(layer, family.experts.path) is not None:
        yield from _expert_channel_sites(layer, family, index)
        return
    f = family.ffn
    consumer = join(f.path, f.down)
    if not has_weight(layer, consumer):
        return
    units = parameter_shape(layer, consumer)[1]
    cuts: list[Cut] = []
    for name in f.up:
        writer = join(f.path, name)
        cuts += _rows(layer, writer, 1)
        if f.stacked:
            cuts += _rows(layer, writer, 1, units)
    cuts.append(_matrix_cut(layer, consumer, 1, 1))
    yield make_site("channel", layer, index, units, tuple(cuts), consumer, 1)


def _expert_channel_sites(layer: nn.Module, family: Family, index: int) -> Iterator[Site]:
    e = family.experts
    if e is None or e.form == "flat" or submodule(layer, e.path) is None:
        return
    up, down = f"{e.path}.{e.up}", f"{e.path}.{e.down}"
    experts, *sizes = layer.get_parameter(down).shape
    units = sizes[0] if e.transposed else sizes[1]
    for i in range(experts):
        # What has a place in the first matrix and is no expert (LongCat's identities) is narrowed with the last.
        last = layer.get_parameter(up).shape[0] if i == experts - 1 else i + 1
        rows = (cut for number in range(i, last) for cut in _expert_rows(layer, e, up, units, number))
        cuts = (*rows, Cut(down, 0 if e.transposed else 1, expert=i))
        site = make_site("channel", layer, index, units, cuts, f"{down}[{i}]", 1, expert=i)
        yield replace(site, multiple=EXPERT_CHANNELS)


def _expert_rows(layer: nn.Module, e: ExpertModules, up: str, units: int, expert: int) -> Iterator[Cut]:
    """What a channel of an expert owns of the matrix that writes it, see `expert_forms`."""
    axis = 1 if e.transposed else 0
    if e.form == "interleaved":
        yield Cut(up, axis, width=2, expert=expert)
        yield Cut(f"{up}_bias", 0, width=2, expert=expert)
        return
    yield Cut(up, axis, expert=expert)
    if e.form != "plain":
        yield Cut(up, axis, offset=units, expert=expert)


def _expert_sites(layer: nn.Module, family: Family, index: int) -> Iterator[Site]:
    """Whole experts: each owns its slices of the 3-D parameters and its row of the router."""
    e = family.experts
    if e is None or submodule(layer, e.path) is None or not all(has_tensor(layer, name) for name, _ in e.also):
        return  # or another router sends tokens to them
    up, down = f"{e.path}.{e.up}", f"{e.path}.{e.down}"
    own = [(up, 0), (down, 0), (f"{e.router}.weight", 0), *e.also]
    if e.form == "interleaved":
        own += [(f"{up}_bias", 0), (f"{down}_bias", 0)]
    cuts = tuple(Cut(name, axis) for name, axis in own)
    if e.form == "flat":
        flat = (up, f"{e.path}.{e.gate}", down)
        cuts = (*(Cut(name, 0, e.rows) for name in flat), *cuts[2:])
    units = experts_of(layer.get_submodule(e.path), e)
    site = make_site("expert", layer, index, units, cuts, down, 1)
    least = e.least if e.least is not None else layer.get_submodule(e.router).top_k
    yield replace(site, least=least)  # type: ignore[arg-type]


def _whole_sites(layer: nn.Module, family: Family, index: int) -> Iterator[Site]:
    """Sites of one unit: the attention sub-block, the FFN sub-block, the layer. They own whole parameters."""
    e = family.experts
    attention_consumer = join(family.attention.path, family.attention.o)
    ffn_consumer = join(family.ffn.path, family.ffn.down)
    if e is not None and submodule(layer, e.path) is not None:
        ffn_consumer = f"{e.path}.{e.down}"
    for kind, consumer in (("attention", attention_consumer), ("ffn", ffn_consumer)):
        if any(True for m in family.modules_of(kind) for _ in layer.get_submodule(m).parameters()):
            yield _whole(kind, layer, index, family.modules_of(kind), consumer)
    yield _whole("layer", layer, index, ("",), ffn_consumer)


def _whole(kind: str, layer: nn.Module, index: int, modules: tuple[str, ...], consumer: str) -> Site:
    cuts = []
    for path in modules:
        for name, parameter in layer.get_submodule(path).named_parameters():
            cuts.append(Cut(join(path, name), 0, parameter.shape[0]))
    params = sum(tensor_of(layer, c.parameter).numel() for c in cuts)
    return Site(kind, index, 1, tuple(cuts), consumer, 1, params)


def _matrix_cut(layer: nn.Module, linear: str, axis: int, width: int, offset: int = 0) -> Cut:
    """A cut of a Linear's weight along logical axis 0 (outputs) or 1 (inputs), whatever its storage."""
    stored = 1 - axis if is_transposed(layer.get_submodule(linear)) else axis
    return Cut(f"{linear}.weight", stored, width, offset)


def _rows(layer: nn.Module, linear: str, width: int, offset: int = 0) -> list[Cut]:
    """Output rows of a Linear and, where it has one, the matching entries of its bias."""
    cuts = [_matrix_cut(layer, linear, 0, width, offset)]
    if getattr(layer.get_submodule(linear), "bias", None) is not None:
        cuts.append(Cut(f"{linear}.bias", 0, width, offset))
    return cuts


def _widen(cut: Cut, times: int) -> Cut:
    return Cut(cut.parameter, cut.axis, cut.width * times, cut.offset, cut.expert, cut.rescale)
