"""Cutting: zero the units of a site, or remove them so that the layer gets smaller.

Both take the units to keep. `zero` leaves every shape alone and is the definition of what a cut means;
`remove` must give a layer that computes the same to rounding, and the tests hold it to that for every
family. Experts have no zeros that mean this, since a router goes on choosing an expert that writes nothing: their
removal is defined as a router that never chooses them, whose logits for them are -inf.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from secateur.errors import UnsupportedModelError
from secateur.model.anatomy import tensor_of
from secateur.model.architectures import Family, join
from secateur.model.expert_forms import experts_of
from secateur.model.linears import has_weight, is_transposed, submodule
from secateur.model.modeling_secateur import set_heads, state_widths, take_out
from secateur.model.sites import Cut, Site, head_counts

__all__ = ["drop", "remove", "renumber", "set_heads", "silence", "unit_parameters", "update_heads", "zero"]


def zero(layer: nn.Module, site: Site, keep: torch.Tensor) -> None:
    """Sets all weights of the units that go to zero, in place; no shape changes.

    Args:
        layer: the decoder layer that the site is of.
        site: what is cut, from `sites_of` or `secateur.sites`.
        keep: bool (units,), True = stays.

    Raises:
        UnsupportedModelError: the units are whole experts.
    """
    if site.kind == "expert":
        raise UnsupportedModelError(f"{site.name}: an expert of zeros would still be chosen; remove it instead")
    for cut in site.cuts:
        parameter = tensor_of(layer, cut.parameter)
        target = parameter if cut.expert is None else parameter[cut.expert]
        for offset, own in cut.spans(site.units):
            gone = ~keep[own].repeat_interleave(cut.width).to(target.device)
            shape = [-1 if axis == cut.axis else 1 for axis in range(target.dim())]
            target.narrow(cut.axis, offset, len(gone)).masked_fill_(gone.view(shape), 0)


def unit_parameters(layer: nn.Module, site: Site) -> torch.Tensor:
    """Everything that each unit of a site owns, flattened: (units, params_per_unit) fp32."""
    parts = []
    for cut in site.cuts:
        parameter = tensor_of(layer, cut.parameter)
        target = parameter if cut.expert is None else parameter[cut.expert]
        runs = [
            target.narrow(cut.axis, offset, (own.stop - own.start) * cut.width).movedim(cut.axis, 0)
            for offset, own in cut.spans(site.units)
        ]
        parts.append((torch.cat(runs) if len(runs) > 1 else runs[0]).reshape(site.units, -1).float())
    return torch.cat(parts, dim=1)


def remove(layer: nn.Module, cuts: list[tuple[Site, torch.Tensor]]) -> None:
    """Takes units out of the layer's parameters, in place, and updates the sizes that its modules state.

    The result computes what `zero` with the same units would leave, but for rounding:

        >>> import copy, torch, secateur
        >>> layer = secateur.open_for_walk("embedded", device="cpu").load(0)
        >>> channels = next(site for site in secateur.sites("embedded") if site.name == "layers.0.channel")
        >>> keep = torch.arange(channels.units) % 4 != 0
        >>> zeroed = copy.deepcopy(layer)
        >>> zero(zeroed, channels, keep)
        >>> remove(layer, [(channels, keep)])
        >>> zeroed.mlp.down_proj.weight.shape, layer.mlp.down_proj.weight.shape
        (torch.Size([192, 512]), torch.Size([192, 384]))
        >>> x = torch.linspace(-1, 1, 192)
        >>> torch.allclose(zeroed.mlp(x), layer.mlp(x), atol=1e-5)
        True

    Args:
        layer: the decoder layer that the sites are of.
        cuts: (site, keep bool (units,), True = stays) for sites of this layer. Query heads and KV groups of one layer
            are taken one after the other, so give them in one call each, and call `update_heads` after it; expert
            sites that share a 3-D parameter must come together and keep equally many units.

    Raises:
        UnsupportedModelError: experts of one layer would keep different numbers of channels or no multiple of
            `Site.multiple`, the KV groups of one layer different numbers of query heads, or a layer fewer experts
            than a token takes.
    """
    selections: dict[str, list[tuple[Cut, torch.Tensor]]] = defaultdict(list)
    for site, keep in cuts:
        _check_even(site, keep)
        for cut in site.cuts:
            selections[cut.parameter].append((cut, keep))
    for name, chosen in selections.items():
        set_parameter(layer, name, _select(tensor_of(layer, name), chosen))
    for site, keep in cuts:
        if site.by_head:
            _note_heads(layer, keep)


def _note_heads(layer: nn.Module, keep: torch.Tensor) -> None:
    """Which of the model's heads a layer has left: what the model hands to it is for all of them."""
    heads: Any = layer.secateur_heads
    stays = keep.repeat_interleave(len(heads["kept"]) // len(keep)).tolist()
    kept = [head for head, stay in zip(heads["kept"], stays, strict=True) if stay]
    layer.secateur_heads = {**heads, "kept": kept}  # type: ignore[assignment]


def _check_even(site: Site, keep: torch.Tensor) -> None:
    per_group = keep.view(site.groups, -1).sum(dim=1)
    if int(per_group.min()) != int(per_group.max()):
        raise UnsupportedModelError(
            f"{site.name}: each of the {site.groups} KV groups must keep equally many query heads, "
            f"the plan keeps {per_group.tolist()}"
        )
    kept = int(keep.sum())
    if kept < site.least:
        raise UnsupportedModelError(f"{site.name}: {site.least} units or more must stay, the plan keeps {kept}")
    if kept % site.multiple and kept < site.units:
        raise UnsupportedModelError(
            f"{site.name}: experts run only with multiples of {site.multiple} channels, the plan keeps {kept}"
        )


def _select(parameter: torch.Tensor, chosen: list[tuple[Cut, torch.Tensor]]) -> torch.Tensor:
    """The parameter without the entries that the cuts remove."""
    if chosen[0][0].expert is not None:
        parts = []
        for expert in range(parameter.shape[0]):
            own = [(_without_expert(c), k) for c, k in chosen if c.expert == expert]
            parts.append(_select(parameter[expert], own) if own else parameter[expert])
        if len({tuple(p.shape) for p in parts}) > 1:
            raise UnsupportedModelError(
                "the experts of one layer share one 3-D tensor, so all of them must keep equally many "
                f"channels; the plan keeps {[tuple(p.shape) for p in parts]}"
            )
        return torch.stack(parts)
    by_axis: dict[int, torch.Tensor] = {}
    scale = 1.0
    for cut, keep in chosen:
        alive = by_axis.setdefault(cut.axis, torch.ones(parameter.shape[cut.axis], dtype=torch.bool))
        for offset, units in cut.spans(keep.numel()):
            part = keep[units].cpu().repeat_interleave(cut.width)
            alive[offset : offset + len(part)] &= part
        if cut.rescale:
            scale *= math.sqrt(keep.numel() / int(keep.sum()))
    for axis, alive in by_axis.items():
        parameter = parameter.index_select(axis, alive.nonzero().flatten().to(parameter.device))
    return parameter * scale if scale != 1.0 else parameter.clone()


def _without_expert(cut: Cut) -> Cut:
    return Cut(cut.parameter, cut.axis, cut.width, cut.offset)


def set_parameter(layer: nn.Module, name: str, value: torch.Tensor) -> None:
    """Puts a parameter of another shape in place and updates the sizes that its module states."""
    path, _, leaf = name.rpartition(".")
    module = layer.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = value.contiguous()
        return
    setattr(module, leaf, nn.Parameter(value.contiguous(), requires_grad=False))
    if hasattr(module, "num_experts"):  # the experts themselves, and their router
        module.num_experts = value.shape[0]  # type: ignore[assignment]
    state_widths(module, leaf, value)
    if leaf == "down_proj" and value.dim() == 3:
        row = getattr(module, "secateur_experts", None)
        width = value.shape[1] if row is not None and row.transposed else value.shape[2]
        for name in ("intermediate_dim", "intermediate_size", "expert_dim"):
            if hasattr(module, name):
                setattr(module, name, width)


def silence(layer: nn.Module, site: Site) -> None:
    """Zeroes the consumer of a whole sub-block, weights and bias: it then adds nothing to the stream."""
    module = submodule(layer, site.consumer)
    tensors = [layer.get_parameter(site.consumer)] if module is None else list(module.parameters())
    for tensor in tensors:
        tensor.data.zero_()


def update_heads(layer: nn.Module, family: Family, head_dim: int) -> None:
    """Makes the attention module's own head counts agree with its weights, after heads were removed."""
    if family.anatomies:
        for units in family.anatomy_of(layer).units:
            if has_weight(layer, units.consumer):
                units.resize(layer)
        e = family.experts
        if e is not None and submodule(layer, e.path) is not None:
            for module, name in e.sizes:
                setattr(layer.get_submodule(module), name, experts_of(layer.get_submodule(e.path), e))
            for module, name in e.choices:
                setattr(layer.get_submodule(module), name, len(layer.get_parameter(f"{e.router}.weight")))
        return
    path = family.attention.path
    if has_weight(layer, join(path, family.attention.o)):
        heads, kv_heads = head_counts(layer, family, head_dim)
        set_heads(layer.get_submodule(path), heads, kv_heads, head_dim)


def drop(layer: nn.Module, site: Site, family: Family) -> None:
    """Takes a whole sub-block out: its modules are replaced by ones without weights that output zeros.

    Norms around the sub-block stay. Where one stands behind the sum (BERT, the first OPT models), it goes on
    norming the stream alone: the same as after `silence`, and all that plain zeros can mean.
    """
    consumer = submodule(layer, site.consumer)
    rows = layer.get_parameter(site.consumer).shape[1] if consumer is None else _outputs(consumer)
    take_out(layer, site.kind, site.layer, family.modules_of(site.kind), rows)


def _outputs(linear: nn.Module) -> int:
    weight = linear.get_parameter("weight")
    return int(weight.shape[1] if is_transposed(linear) else weight.shape[0])


def renumber(layer: nn.Module, index: int) -> None:
    """Tells a layer its place after layers before it were dropped: the cache is addressed by it."""
    for module in layer.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            module.layer_idx = index  # type: ignore[assignment]
