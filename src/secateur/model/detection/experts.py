"""Experts of a layer, found by the shapes of their parameters, and proved by computing what they write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.model.architectures import ExpertModules
from secateur.model.detection.copies import run, token_ids

WIDTHS = ("moe_intermediate_size", "intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size")
COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "num_experts_per_token", "moe_top_k")


def find_experts(model: Any, path: str, place: int, config: Any) -> ExpertModules | str | None:
    """Where the experts of a layer are; why they can't be cut; or None where it has none.

    Args:
        config: of the language model.
    """
    layer = model.get_submodule(path)[place]
    for name, module in layer.named_modules():
        shapes = {n: tuple(p.shape) for n, p in module.named_parameters(recurse=False) if p.dim() == 3}
        if len(shapes) < 2 or "conv" in name:
            continue
        if set(shapes) != {"gate_up_proj", "down_proj"} or not hasattr(module, "act_fn"):
            return f"{name}: experts of another form ({', '.join(sorted(shapes))})"
        return _row(model, layer, name, module, config)
    return None


def _row(model: Any, layer: nn.Module, name: str, module: Any, config: Any) -> ExpertModules | str:
    count, hidden, width = module.down_proj.shape
    if tuple(module.gate_up_proj.shape) != (count, 2 * width, hidden):
        return f"{name}: experts of another form (transposed)"
    if not _computes_so(model, module):
        return f"{name}: experts that compute something else than act(gate) * up"
    parent = name.rpartition(".")[0]
    router = _router(layer, parent, name, count, hidden)
    if router is None:
        return f"{name}: no router of {count} rows is beside them"
    width_key = next((k for k in WIDTHS if getattr(config, k, None) == width), WIDTHS[0])
    count_key = next((k for k in COUNTS if getattr(config, k, None) == count), COUNTS[0])
    least = None
    if not hasattr(layer.get_submodule(router), "top_k"):
        least = next((int(v) for k in CHOSEN if isinstance(v := getattr(config, k, None), int)), 1)
    row = ExpertModules(name, router, width_key=width_key, count_key=count_key, least=least)
    return _with_the_rest(layer, parent, row, count)


def _with_the_rest(layer: nn.Module, parent: str, row: ExpertModules, count: int) -> ExpertModules:
    """What else around the experts has an entry for each, or states how many they are."""
    also, sizes = [], []
    for name, module in layer.get_submodule(parent).named_modules(prefix=parent):
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for leaf, tensor in tensors:
            own = f"{name}.{leaf}" if name else leaf
            taken = (f"{row.path}.{row.up}", f"{row.path}.{row.down}", f"{row.router}.weight")
            if own not in taken and tensor.dim() >= 1 and tensor.shape[0] == count and tensor.numel() == count:
                also.append(own)
        for key, value in vars(module).items():
            if type(value) is int and value == count and "expert" in key and "per_tok" not in key:
                sizes.append((name, key))
    return replace(row, also=tuple(also), sizes=tuple(sizes))


def _router(layer: nn.Module, parent: str, experts: str, count: int, hidden: int) -> str | None:
    for name, module in layer.get_submodule(parent).named_modules(prefix=parent):
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and tuple(weight.shape) == (count, hidden) and not name.startswith(experts):
            return name
    return None


@torch.no_grad()
def _computes_so(model: Any, module: Any) -> bool:
    """Whether the output is the sum of what each chosen expert writes, times its weight."""
    seen: list[tuple[tuple[Any, ...], Tensor]] = []
    handle = module.register_forward_hook(lambda _m, args, out: seen.append((args, out)))
    try:
        run(model, token_ids(model))
    finally:
        handle.remove()
    if not seen or len(seen[0][0]) < 3:
        return False
    (hidden, chosen, gates), out = seen[0][0][:3], seen[0][1]
    flat = hidden.reshape(-1, hidden.shape[-1])
    wanted = torch.zeros_like(flat)
    for expert in range(len(module.down_proj)):
        token, place = (chosen.reshape(len(flat), -1) == expert).nonzero(as_tuple=True)
        gate, up = nn.functional.linear(flat[token], module.gate_up_proj[expert]).chunk(2, dim=-1)
        wrote = nn.functional.linear(module.act_fn(gate) * up, module.down_proj[expert])
        wanted.index_add_(0, token, wrote * gates.reshape(len(flat), -1)[token, place, None].to(wrote.dtype))
    return torch.allclose(wanted, out.reshape(wanted.shape), rtol=1e-3, atol=1e-4 * float(out.abs().max()))
