"""Experts of a layer, found by the shapes of their parameters, and proved by computing what they write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.model.architectures import ExpertModules
from secateur.model.detection.copies import run, token_ids
from secateur.model.expert_forms import written_by_expert

WIDTHS = ("moe_intermediate_size", "intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size")
COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "num_experts_per_token", "moe_top_k")


FORMS = ("gated", "plain", "transposed", "interleaved")


def find_experts(model: Any, path: str, place: int, config: Any) -> ExpertModules | str | None:
    """Where the experts of a layer are; why they can't be cut; or None where it has none.

    Args:
        config: of the language model.
    """
    layer = model.get_submodule(path)[place]
    for name, module in layer.named_modules():
        shapes = {n for n, p in module.named_parameters(recurse=False) if p.dim() == 3}
        flat = "Expert" in type(module).__name__ and not shapes and not list(module.children())
        if flat or (len(shapes) == 1 and "Expert" in type(module).__name__):
            return f"{name}: experts of another form ({type(module).__name__})"
        if len(shapes) >= 2:
            return _row(model, layer, name, module, config)
    return None


def _row(model: Any, layer: nn.Module, name: str, module: Any, config: Any) -> ExpertModules | str:
    up = "gate_up_proj" if hasattr(module, "gate_up_proj") else "up_proj"
    if not hasattr(module, up) or not hasattr(module, "down_proj"):
        return f"{name}: experts of another form ({type(module).__name__})"
    seen = _called(model, module)
    parent = name.rpartition(".")[0]
    for form in FORMS:
        row = ExpertModules(name, "", up=up, form=form, routed=len(seen[0]) >= 3)
        module.secateur_experts = row
        if _computes_so(module, *seen):
            break
    else:
        return f"{name}: what these experts compute isn't understood ({type(module).__name__})"
    count, rows, columns = module.down_proj.shape
    width = rows if row.transposed else columns
    router = _router(layer, parent, name, count)
    if router is None:
        return f"{name}: no router of {count} rows is beside them"
    width_key = next((k for k in WIDTHS if getattr(config, k, None) == width), WIDTHS[0])
    count_key = next((k for k in COUNTS if getattr(config, k, None) == count), COUNTS[0])
    least = None
    if not hasattr(layer.get_submodule(router), "top_k"):
        least = next((int(v) for k in CHOSEN if isinstance(v := getattr(config, k, None), int)), 1)
    row = replace(row, router=router, width_key=width_key, count_key=count_key, least=least)
    row = _with_the_rest(layer, parent, row, count)
    module.secateur_experts = row
    return row


def _with_the_rest(layer: nn.Module, parent: str, row: ExpertModules, count: int) -> ExpertModules:
    """What else around the experts has an entry for each, or states how many they are."""
    also, sizes = [], []
    for name, module in layer.get_submodule(parent).named_modules(prefix=parent):
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for leaf, tensor in tensors:
            own = f"{name}.{leaf}" if name else leaf
            taken = (f"{row.path}.{row.up}", f"{row.path}.{row.down}", f"{row.router}.weight")
            if own not in taken and tensor.dim() >= 1 and tensor.numel() == count == max(tensor.shape):
                also.append((own, list(tensor.shape).index(count)))
        for key, value in vars(module).items():
            if type(value) is int and value == count and "expert" in key and "per_tok" not in key:
                sizes.append((name, key))
    return replace(row, also=tuple(also), sizes=tuple(sizes))


def _router(layer: nn.Module, parent: str, experts: str, count: int) -> str | None:
    for name, module in layer.get_submodule(parent).named_modules(prefix=parent):
        weight = getattr(module, "weight", None)
        known = isinstance(weight, Tensor) and weight.dim() == 2 and weight.shape[0] == count
        if known and not name.startswith(experts):
            return name
    return None


@torch.no_grad()
def _called(model: Any, module: Any) -> tuple[tuple[Any, ...], Tensor]:
    """What the experts are called with, and what they return."""
    seen: list[tuple[tuple[Any, ...], Tensor]] = []
    handle = module.register_forward_hook(
        lambda _m, args, kwargs, out: seen.append(((*args, *kwargs.values()), out)), with_kwargs=True
    )
    try:
        run(model, token_ids(model))
    finally:
        handle.remove()
    if not seen:
        raise ValueError("its experts aren't called")
    return seen[0]


@torch.no_grad()
def _computes_so(module: Any, args: tuple[Any, ...], out: Tensor) -> bool:
    """Whether the output is the sum of what each chosen expert writes, times its weight."""
    count = len(module.down_proj)
    try:
        if len(args) < 3:
            x = args[0].view(count, -1, args[0].shape[-1])
            wanted = torch.cat([written_by_expert(module, expert, x[expert]) for expert in range(count)])
        else:
            wanted = _routed(module, *args[:3])
    except (RuntimeError, AttributeError):  # shapes that don't fit this form
        return False
    return torch.allclose(wanted, out.reshape(wanted.shape), rtol=1e-3, atol=1e-4 * float(out.abs().max()))


def _routed(module: Any, hidden: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
    flat = hidden.reshape(-1, hidden.shape[-1])
    wanted = torch.zeros_like(flat)
    for expert in range(len(module.down_proj)):
        token, place = (chosen.reshape(len(flat), -1) == expert).nonzero(as_tuple=True)
        wrote = written_by_expert(module, expert, flat[token])
        wanted.index_add_(0, token, wrote * gates.reshape(len(flat), -1)[token, place, None].to(wrote.dtype))
    return wanted
