"""Another basis for the residual stream, and fewer dimensions of it.

An RMS norm without a gain commutes with rotations: x Q / |x Q| = (x / |x|) Q. So once the gains are in the Linears
behind the norms, what writes to the stream (embeddings, attention and FFN outputs) may be rotated by an orthogonal Q,
and what reads from it by Qᵀ, and the model computes the same (Ashkboos et al. 2024,
https://arxiv.org/abs/2401.15024, theorem 1). With only k columns of Q the model is one whose stream is projected onto
them, with k hidden dimensions:

    producer  W -> Qᵀ W        consumer  W -> W diag(γ) Q        gain -> sqrt(d / k)        epsilon -> epsilon d / k

The new gain and epsilon are there because the mean of the squares is now over k entries; with them the smaller model
equals the projected one to rounding. Embeddings and head can no longer be one matrix: the last gain is in the head.
"""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import InputError
from secateur.model.architectures import EXPERT_CHANNELS, Family, join
from secateur.model.checkpoint import Checkpoint
from secateur.model.classes import model_class
from secateur.model.json_files import Json
from secateur.model.uneven import builds

EPSILON = "rms_norm_eps"


def check_rotatable(checkpoint: Checkpoint) -> None:
    """Refuses a model whose stream has a basis of its own.

    Raises:
        InputError: in one line.
    """
    kind = checkpoint.config.model_type
    if not checkpoint.family.norms or not hasattr(checkpoint.config, EPSILON):
        raise InputError(
            f"site 'hidden': the norms of {kind} models don't allow another basis of the stream; name other sites"
        )


def norm_consumers(layer: nn.Module, family: Family) -> list[tuple[str, tuple[str, ...]]]:
    """Each norm of a layer with the parameters that read what it hands on, their last axis."""
    a, f, e = family.attention, family.ffn, family.experts
    heads = tuple(join(a.path, n, "weight") for n in ((a.fused,) if a.fused else (a.q, a.k, a.v)))
    wide = tuple(join(f.path, n, "weight") for n in f.up)
    if e is not None and _has(layer, f"{e.path}.{e.up}"):
        wide = (f"{e.path}.{e.up}", f"{e.router}.weight")
    groups = zip(family.norms, (heads, wide), strict=True)
    return [(norm, tuple(name for name in names if _has(layer, name))) for norm, names in groups]


def producers(layer: nn.Module, family: Family) -> tuple[str, ...]:
    """The parameters that write to the stream, their last axis but one; biases have only that."""
    a, f, e = family.attention, family.ffn, family.experts
    names = [
        join(module, part) for module in (join(a.path, a.o), join(f.path, f.down)) for part in ("weight", "bias")
    ]
    if e is not None:
        names.append(f"{e.path}.{e.down}")
    return tuple(name for name in names if _has(layer, name))


def _has(layer: nn.Module, name: str) -> bool:
    try:
        layer.get_parameter(name)
    except AttributeError:
        return False
    return True


def read_with(weight: Tensor, gain: Tensor, Q: Tensor) -> Tensor:
    """W diag(γ) Q for a consumer (..., d), in fp64 and back."""
    return (weight.double() * gain.double() @ Q.double()).to(weight.dtype)


def written_with(weight: Tensor, Q: Tensor) -> Tensor:
    """Qᵀ W for a writer (..., d, in), or b Q for its bias (d,)."""
    wide, Q = weight.double(), Q.double()
    return (wide @ Q if weight.dim() == 1 else Q.T @ wide).to(weight.dtype)


@torch.no_grad()
def narrow_layer(layer: nn.Module, family: Family, Q: Tensor) -> dict[str, Tensor]:
    """A layer's parameters in the basis of Q's columns (d, k): those that see the stream change, others don't."""
    found = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    d, k = Q.shape
    Q = Q.to(next(iter(found.values())).device)
    for norm, names in norm_consumers(layer, family):
        gain = found[f"{norm}.weight"]
        for name in names:
            found[name] = read_with(found[name], gain, Q)
        found[f"{norm}.weight"] = torch.full((k,), (d / k) ** 0.5, dtype=gain.dtype, device=gain.device)
    for name in producers(layer, family):
        found[name] = written_with(found[name], Q)
    return found


@torch.no_grad()
def narrow_surroundings(tensors: dict[str, Tensor], checkpoint: Checkpoint, Q: Tensor) -> dict[str, Tensor]:
    """Embeddings, final norm and head, likewise, by their names in memory; a head of its own where there was none.

    Args:
        tensors: `StreamedModel.surroundings`.
    """
    embeddings, norm, head = surrounding_names(checkpoint)
    d, k = Q.shape
    gain, table = tensors[norm], tensors[embeddings]
    empty = table.is_meta
    Q = Q.to(table.device)
    own = tensors.get(head, table)
    narrow = torch.full((k,), (d / k) ** 0.5, dtype=gain.dtype, device=gain.device)
    found = {**tensors, norm: narrow}
    found[embeddings] = table.new_empty(len(table), k) if empty else (table.double() @ Q.double()).to(table.dtype)
    found[head] = own.new_empty(len(own), k) if empty else read_with(own, gain, Q)
    return found


def surrounding_names(checkpoint: Checkpoint) -> tuple[str, str, str]:
    """Names in memory of the weights of embeddings, final norm and head."""
    template: Any = checkpoint.template
    # `remove_duplicate`: a head may be the very parameter that the embeddings are.
    named = {id(module): name for name, module in template.named_modules(remove_duplicate=False)}
    stem = checkpoint.family.layers.rpartition(".")[0]
    ends = (named[id(template.get_input_embeddings())], f"{stem}.norm", named[id(template.get_output_embeddings())])
    embeddings, norm, head = (f"{name}.weight" for name in ends)
    return embeddings, norm, head


def dimension_multiple(checkpoint: Checkpoint) -> int:
    """What the number of hidden dimensions must be a multiple of.

    Some configurations want the heads to divide it, and the grouped products of experts want whole rows.
    """
    heads, wide = int(checkpoint.config.num_attention_heads), int(checkpoint.config.hidden_size)
    odd = checkpoint.config.to_dict() | narrow_values(checkpoint, wide - 1)
    return math.lcm(1 if builds(odd) else heads, EXPERT_CHANNELS if checkpoint.family.experts is not None else 1)


def narrow_values(checkpoint: Checkpoint, hidden: int) -> Json:
    """What changes in the configuration of a model with `hidden` dimensions, whose heads are as they were."""
    wide, epsilon = int(checkpoint.config.hidden_size), float(getattr(checkpoint.config, EPSILON))
    own = {"hidden_size": hidden, "head_dim": checkpoint.head_dim, "tie_word_embeddings": False}
    return {**own, EPSILON: epsilon * wide / hidden}


def narrow_config(checkpoint: Checkpoint, hidden: int) -> Json:
    """config.json of the model with `hidden` dimensions.

    Raises:
        InputError: this class derives something else from the hidden size.
    """
    values = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
    own = narrow_values(checkpoint, hidden)
    config = copy.deepcopy(checkpoint.config)
    for key, value in own.items():
        setattr(config, key, value)
    with torch.device("meta"):
        narrow = model_class(config)._from_config(config)
    path, Q = checkpoint.family.layers, torch.empty(int(checkpoint.config.hidden_size), hidden, device="meta")
    pairs = zip(
        checkpoint.template.get_submodule(path).children(), narrow.get_submodule(path).children(), strict=True
    )
    for before, after in pairs:
        wanted = narrow_layer(before, checkpoint.family, Q)
        if any(after.get_parameter(name).shape != tensor.shape for name, tensor in wanted.items()):
            raise InputError(
                f"site 'hidden': {checkpoint.config.model_type} models derive other sizes from the hidden size; name "
                "other sites"
            )
    return {**values, **own}
