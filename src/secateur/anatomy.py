"""What a model is made of: sites, parameters, FLOPs, KV cache, and which cuts load and pay off where.

No weights are read: shapes and the configuration say it all.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from secateur.model.checkpoint import Checkpoint
from secateur.model.families import join
from secateur.model.linears import linears_of, submodule
from secateur.model.sites import Site, sites_of
from secateur.model.uneven import legal_heads

# Matrix units work on tiles of this many entries; a width that is a multiple of it wastes nothing.
HARDWARE_TILE = 64
CACHE_BYTES = 2  # per entry of the KV cache in half precision


def inspect(path: str | Path) -> dict[str, Any]:
    """Describes a checkpoint.

    Returns:
        architecture, model_type, dtype, layers, parameters, bytes_on_disk, flops_per_token (multiply and add
        counted apart, attention over the context left out), flops_per_token_at_context,
        kv_cache_bytes_per_token (half precision), parts (share of each part of the model), sites (one row for
        each kind: units per layer, parameters per unit, share of the model, what is legal), speed (what each
        kind of cut speeds up and what not).

    Raises:
        InputError: the folder is no model folder.
        UnsupportedModelError: the architecture is not in the table.
    """
    checkpoint = Checkpoint.open(path)
    layers = list(checkpoint.template.get_submodule(checkpoint.family.layers).children())
    sites = [s for i, layer in enumerate(layers) for s in sites_of(layer, checkpoint.family, i, checkpoint.head_dim)]
    flops = _flops(checkpoint, layers)
    return {
        "model": str(path),
        "architecture": checkpoint.family.name,
        "model_type": checkpoint.config.model_type,
        "dtype": str(checkpoint.dtype).removeprefix("torch."),
        "layers": checkpoint.layers,
        "hidden_size": checkpoint.config.hidden_size,
        "context": getattr(checkpoint.config, "max_position_embeddings", None),
        "parameters": checkpoint.parameters,
        "linear_parameters": checkpoint.linear_parameters,
        "bytes_on_disk": checkpoint.bytes_on_disk,
        "flops_per_token": flops,
        "flops_per_token_at_context": flops + _attention_flops(checkpoint, layers),
        "kv_cache_bytes_per_token": _cache_bytes(sites, checkpoint),
        "parts": _parts(checkpoint, sites),
        "sites": [*_weight_rows(checkpoint, layers), *_site_rows(checkpoint, sites)],
        "speed": _speed(checkpoint),
    }


def _flops(checkpoint: Checkpoint, layers: Iterable[nn.Module]) -> int:
    """2 x the matrix entries that a token passes: layers (only the chosen experts) and the head."""
    family, total = checkpoint.family, 0
    chosen = getattr(checkpoint.config, "num_experts_per_tok", None)
    for layer in layers:
        experts = family.experts if family.experts and submodule(layer, family.experts.path) is not None else None
        for linear in linears_of(layer, family):
            size = linear.shape[0] * linear.shape[1]
            if experts is not None and chosen is not None and linear.name.startswith(experts.path):
                size = size * chosen // layer.get_parameter(f"{experts.path}.{experts.down}").shape[0]
            total += size
    return 2 * (total + checkpoint.config.hidden_size * checkpoint.config.vocab_size)


def _attention_flops(checkpoint: Checkpoint, layers: list[nn.Module]) -> int:
    """Scores and mixing of the last token over a full context: 4 x context x width in each layer."""
    context = getattr(checkpoint.config, "max_position_embeddings", None) or 0
    width = checkpoint.config.num_attention_heads * checkpoint.head_dim
    return 4 * context * width * len(layers)


def _cache_bytes(sites: list[Site], checkpoint: Checkpoint) -> int:
    return sum(2 * s.units * checkpoint.head_dim * CACHE_BYTES for s in sites if s.kind == "kv_group")


def _parts(checkpoint: Checkpoint, sites: list[Site]) -> list[dict[str, Any]]:
    def row(name: str, count: int) -> dict[str, Any]:
        return {"part": name, "parameters": count, "share": count / checkpoint.parameters}

    attention = sum(s.params_per_unit for s in sites if s.kind == "attention")
    ffn = sum(s.params_per_unit for s in sites if s.kind == "ffn")
    in_layers = sum(checkpoint.layer_parameters(i) for i in range(checkpoint.layers))
    outside = checkpoint.parameters - in_layers
    return [
        row("attention", attention),
        row("ffn", ffn),
        row("norms and routers in layers", in_layers - attention - ffn),
        row("embeddings, head, final norm", outside),
    ]


def _weight_rows(checkpoint: Checkpoint, layers: list[nn.Module]) -> list[dict[str, Any]]:
    count = sum(len(linears_of(layer, checkpoint.family)) for layer in layers)
    patterns = [
        f"{n}:{m}"
        for n, m in ((2, 4), (4, 8))
        if all(x.shape[1] % m == 0 for layer in layers for x in linears_of(layer, checkpoint.family))
    ]
    return [
        {
            "kind": "weight",
            "per_layer": f"{count // max(1, len(layers))} Linears",
            "units": checkpoint.linear_parameters,
            "params_per_unit": 1,
            "share": checkpoint.linear_parameters / checkpoint.parameters,
            "legal": "any sparsity" + (f"; patterns {', '.join(patterns)}" if patterns else "; no N:M pattern fits"),
            "hardware": "2:4 on NVIDIA sparse tensor cores" if "2:4" in patterns else "-",
        }
    ]


def _site_rows(checkpoint: Checkpoint, sites: list[Site]) -> list[dict[str, Any]]:
    legal = legal_heads(checkpoint.family, checkpoint.config.to_dict(), checkpoint.head_dim)
    rows = []
    for kind in dict.fromkeys(site.kind for site in sites):
        own = [site for site in sites if site.kind == kind]
        parameters = sum(site.units * site.params_per_unit for site in own)
        units = sorted({site.units for site in own})
        text, hardware = _legal(kind, own[0], legal, checkpoint)
        rows.append(
            {
                "kind": kind,
                "per_layer": " or ".join(map(str, units)) + ("" if own[0].expert is None else " per expert"),
                "units": sum(site.units for site in own),
                "params_per_unit": own[0].params_per_unit,
                "share": parameters / checkpoint.parameters,
                "legal": text,
                "hardware": hardware,
            }
        )
    return rows


def _legal(kind: str, site: Site, legal: Any, checkpoint: Checkpoint) -> tuple[str, str]:
    """Uniform keep counts that load with a stock class, and what hardware likes."""
    if kind == "channel":
        return f"1 to {site.units}", f"multiples of {HARDWARE_TILE}" if site.units >= 2 * HARDWARE_TILE else "-"
    if kind in ("query_head", "kv_group"):
        counts = legal.query_heads if kind == "query_head" else legal.kv_groups
        text = ", ".join(map(str, counts))
        renamed = legal.relabelled is not None and checkpoint.config.model_type != legal.relabelled
        if renamed:
            keeps = ", ".join(map(str, legal.own))
            text += f" query heads ({keeps} stay {checkpoint.config.model_type}, others load as {legal.relabelled})"
        if len(counts) == 1:
            text += " (others load with the bundled modelling file)"
        return text, "powers of two for tensor parallelism"
    if kind == "layer":
        return f"1 to {checkpoint.layers} layers", "-"
    return "with the bundled modelling file", "-"


def _speed(checkpoint: Checkpoint) -> list[dict[str, str]]:
    """What each kind of cut speeds up on stock runtimes, and what it doesn't."""
    dense = "shorter prefill and decode, smaller file and memory, on any runtime"
    attention = join(checkpoint.family.attention.path)
    rows = [
        (
            "layer",
            f"{dense}; KV cache shrinks with each layer",
            "no other drawback, but the largest loss",
        ),
        ("channel", dense, "the KV cache stays as it is"),
        ("kv_group", f"{dense}; KV cache shrinks", "tensor parallel degrees must divide what is left"),
        ("query_head", f"{dense}", f"the KV cache stays: all KV heads of {attention} remain"),
        ("weight", "quality per kept weight", "no stock runtime: zeros are stored and multiplied like other numbers"),
    ]
    return [{"kind": kind, "speeds_up": yes, "does_not": no} for kind, yes, no in rows]
