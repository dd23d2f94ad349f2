"""Experts of a layer, found by the shapes of their parameters, and proved by computing what they write."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.model.architectures import ExpertModules
from secateur.model.detection.copies import run, token_ids
from secateur.model.detection.proof_of_experts import wrong_with
from secateur.model.detection.trace import is_matrix
from secateur.model.expert_forms import count_of, experts_of, written_by_expert

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
        lowest = not any(True for child in module.children() for _ in child.parameters())
        if "Expert" in type(module).__name__ and lowest and len(shapes) < 2:
            return _flat_row(model, path, place, name, config)
        if len(shapes) >= 2:
            return _row(model, path, place, name, config)
    return None


def _row(model: Any, path: str, place: int, name: str, config: Any) -> ExpertModules | str:
    layer = model.get_submodule(path)[place]
    module = layer.get_submodule(name)
    up = "gate_up_proj" if hasattr(module, "gate_up_proj") else "up_proj"
    if not hasattr(module, up) or not hasattr(module, "down_proj"):
        return f"{name}: experts of another form ({type(module).__name__})"
    seen = _called(model, module)
    for form in FORMS:
        row = ExpertModules(name, "", up=up, form=form, routed=len(seen[0]) >= 3)
        module.secateur_experts = row
        if (form == "plain" or (form == "interleaved") == _interleaves(module)) and _computes_so(module, *seen):
            break
    else:
        return f"{name}: what these experts compute isn't understood ({type(module).__name__})"
    width = module.down_proj.shape[1 if row.transposed else 2]
    width_key = next((k for k in WIDTHS if getattr(config, k, None) == width), WIDTHS[0])
    return _completed(model, path, place, replace(row, width_key=width_key), config)


def _flat_row(model: Any, path: str, place: int, name: str, config: Any) -> ExpertModules | str:
    """Of experts that have their rows in three matrices of one module, below the one that is called (DBRX)."""
    layer = model.get_submodule(path)[place]
    kept, owner = layer.get_submodule(name), name.rpartition(".")[0]
    other = f"{name}: experts of another form ({type(kept).__name__})"
    parts = [n for n, p in kept.named_parameters(recurse=False) if p.dim() == 2]
    if len(parts) != 3 or not owner or not hasattr(kept, "activation_fn"):
        return other
    below, module = name.removeprefix(f"{owner}."), layer.get_submodule(owner)
    parent = owner.rpartition(".")[0]
    routers = [m.weight for n, m in layer.get_submodule(parent).named_modules() if is_matrix(m)]
    length, seen = len(getattr(kept, parts[0])), _called(model, module)
    for gate, up, down in itertools.permutations(f"{below}.{part}" for part in parts):
        for count in {len(w) for w in routers if length % len(w) == 0}:
            row = ExpertModules(owner, "", up=up, down=down, form="flat", gate=gate, rows=length // count)
            module.secateur_experts = row
            if len(seen[0]) >= 3 and _computes_so(module, *seen):
                return _completed(model, path, place, row, config)
    return other


def _completed(model: Any, path: str, place: int, row: ExpertModules, config: Any) -> ExpertModules | str:
    """The row with its router and all else that goes with an expert; proved."""
    layer = model.get_submodule(path)[place]
    module = layer.get_submodule(row.path)
    parent, count = row.path.rpartition(".")[0], experts_of(module, row)
    choices = max(count, len(module.get_parameter(row.up)) // (row.rows or 1))
    router = _router(layer, parent, row.path, choices)
    if router is None:
        return f"{row.path}: no router of {choices} rows is beside them"
    count_key = next((k for k in COUNTS if getattr(config, k, None) == count), COUNTS[0])
    row = replace(row, router=router, count_key=count_key, least=least_of(layer, router, config))
    row = _with_the_rest(layer, parent, row, count, choices)
    module.secateur_experts = row
    wrong = wrong_with(model, path, place, row)
    return row if wrong is None else f"{row.path}: expert: {wrong}"


def least_of(layer: nn.Module, router: str, config: Any) -> int | None:
    """How many experts a token takes; None where the router itself says so."""
    if hasattr(layer.get_submodule(router), "top_k"):
        return None
    above = [router[:end] for end in range(len(router)) if router[end] == "."]
    found = [layer.get_submodule(name) for name in reversed(above)]
    said = next((v for m in found if type(v := getattr(m, "top_k", None)) is int), None)
    return said or next((int(v) for k in CHOSEN if isinstance(v := getattr(config, k, None), int)), 1)


def _with_the_rest(layer: nn.Module, parent: str, row: ExpertModules, count: int, choices: int) -> ExpertModules:
    """What else around the experts has an entry for each, or states how many they are."""
    also, sizes, all_choices = [], [], []
    for name, module in layer.get_submodule(parent).named_modules(prefix=parent):
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for leaf, tensor in tensors:
            own = f"{name}.{leaf}" if name else leaf
            taken = (f"{row.path}.{row.up}", f"{row.path}.{row.down}", f"{row.router}.weight")
            if own not in taken and tensor.dim() >= 1 and tensor.numel() == choices == max(tensor.shape):
                also.append((own, list(tensor.shape).index(choices)))
        for key, value in vars(module).items():
            if type(value) is int and value == count and "expert" in key and "per_tok" not in key:
                sizes.append((name, key))
            elif type(value) is int and value == choices and "expert" in key and "per_tok" not in key:
                all_choices.append((name, key))
    return replace(row, also=tuple(also), sizes=tuple(sizes), choices=tuple(all_choices))


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
def _interleaves(module: Any) -> bool:
    """Whether gate and up of a channel lie side by side: what the second entry changes then is the first channel."""
    if "_apply_gate" not in vars(type(module)):
        return False
    read = torch.linspace(0.1, 0.9, 2 * min(module.down_proj.shape[1:]) // 2 * 2)[None]
    other = read.clone()
    other[0, 1] += 0.5
    try:
        return bool((module._apply_gate(read) != module._apply_gate(other))[0, 0])
    except RuntimeError:
        return False


@torch.no_grad()
def _computes_so(module: Any, args: tuple[Any, ...], out: Tensor) -> bool:
    """Whether the output is the sum of what each chosen expert writes, times its weight."""
    try:
        if len(args) < 3:
            count = count_of(module)
            x = args[0].view(count, -1, args[0].shape[-1])
            wanted = [torch.cat([written_by_expert(module, expert, x[expert]) for expert in range(count)])]
        else:
            hidden, chosen, gates = args[:3]
            wanted = [_routed(module, hidden, chosen, gates, handed_on) for handed_on in (False, True)]
    except (RuntimeError, AttributeError, TypeError):  # shapes that don't fit this form
        return False
    scale = float(out.abs().max())
    return any(torch.allclose(w, out.reshape(w.shape), rtol=1e-3, atol=1e-4 * scale) for w in wanted)


def _routed(module: Any, hidden: Tensor, chosen: Tensor, gates: Tensor, handed_on: bool) -> Tensor:
    """What the experts write together; of choices that are none, what they read (`handed_on`), or nothing."""
    flat, count = hidden.reshape(-1, hidden.shape[-1]), count_of(module)
    wanted, chosen, gates = torch.zeros_like(flat), chosen.reshape(len(flat), -1), gates.reshape(len(flat), -1)
    for expert in range(count):
        token, place = (chosen == expert).nonzero(as_tuple=True)
        wrote = written_by_expert(module, expert, flat[token])
        wanted.index_add_(0, token, wrote * gates[token, place, None].to(wrote.dtype))
    token, place = (chosen >= (count if handed_on else chosen.max() + 1)).nonzero(as_tuple=True)
    return wanted.index_add_(0, token, flat[token] * gates[token, place, None].to(flat.dtype))
