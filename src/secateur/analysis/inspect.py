"""What a model is made of: sites, parameters, FLOPs, KV cache, and which cuts load and pay off where.

No weights are read: shapes and the configuration say it all.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from secateur.analysis.for_client import for_client
from secateur.analysis.forecast import forecast as of_checkpoint
from secateur.model.anatomy import tensor_of
from secateur.model.checkpoint import Checkpoint
from secateur.model.containers.cache import origin_of
from secateur.model.extras import left_out
from secateur.model.flops import flops_per_token
from secateur.model.hub import local_folder
from secateur.model.linears import linears_of, submodule
from secateur.model.rotation import dimension_multiple, norm_consumers, producers
from secateur.model.site_kinds import HEADS, KINDS, REFITTED, SITE_KINDS
from secateur.model.sites import Site
from secateur.model.uneven import LegalHeads, legal_heads
from secateur.report.schema.model import Counts, Inspected, Part, SiteRow, SpeedRow
from secateur.system.device import dtype_name

# Matrix units work on tiles of this many entries; a width that is a multiple of it wastes nothing.
HARDWARE_TILE = 64
NORMS = "norms and routers in layers"
CACHE_BYTES = 2  # per entry of the KV cache in half precision


def inspect(path: str | Path, client: str | None = None, forecast: bool = False) -> Inspected:
    """Describes a checkpoint: its size, its cost for each token, and which cuts it allows. No weights are read.

    Args:
        path: a folder, `embedded`, or a hub id.
        client: the program that a result has to run in, see `model.clients`: counts are those that it takes.
        forecast: also say what pruning it would take here; how fast this machine is gets measured, in a third of a
            second.

    Returns:
        model, architecture, model_type, dtype, layers, hidden_size, context (tokens), parameters, linear_parameters
        (of the prunable matrices), bytes_on_disk, flops_per_token (multiply and add counted apart, attention over the
        context left out), flops_per_token_at_context (with it, at the full context), kv_cache_bytes_per_token (half
        precision; of latent attention its latents), parts (share of each part of the model), sites (one row for each
        kind: units per layer, parameters per unit, share of the model, what is legal), speed (what each kind of cut
        speeds up and what not); of a model that was dequantised also stored_as; with `forecast` also that: seconds,
        bytes of memory and of disk of the usual kinds of runs.

    Raises:
        InputError: the folder is no model folder.
        UnsupportedModelError: the architecture is not in the table.
    """
    checkpoint = Checkpoint.open(local_folder(path))
    layers = list(checkpoint.template.get_submodule(checkpoint.family.layers).children())
    sites = [site for own in checkpoint.sites for site in own]
    flops = flops_per_token(checkpoint, layers)
    rows = [*_weight_rows(checkpoint, layers), *_site_rows(checkpoint, sites), *_hidden_rows(checkpoint)]
    rows.sort(key=lambda row: SITE_KINDS.index(row["kind"]))
    found: Inspected = {
        "model": str(path),
        "architecture": checkpoint.family.name,
        "model_type": checkpoint.config.model_type,
        "dtype": dtype_name(checkpoint.dtype),
        "layers": checkpoint.layers,
        "hidden_size": checkpoint.config.hidden_size,
        "context": getattr(checkpoint.config, "max_position_embeddings", None),
        "parameters": checkpoint.parameters,
        "linear_parameters": checkpoint.linear_parameters,
        "bytes_on_disk": checkpoint.bytes_on_disk,
        "flops_per_token": flops,
        "flops_per_token_at_context": flops + _attention_flops(checkpoint, sites),
        "kv_cache_bytes_per_token": _cache_bytes(sites, checkpoint),
        "parts": _parts(checkpoint, sites),
        "sites": rows,
        "speed": _speed({row["kind"] for row in rows}),
        "found": "detected" if checkpoint.family.anatomies else "listed",
        "not_offered": list(checkpoint.family.failed),
        "left_out": left_out(checkpoint),
    }
    stored_as = origin_of(checkpoint.path)
    if stored_as is not None:
        found["stored_as"] = stored_as
    if forecast:
        found["forecast"] = of_checkpoint(checkpoint)
    return (
        found
        if client is None
        else for_client(found, client, causal=checkpoint.family.causal, head_dim=checkpoint.head_dim)
    )


def _attention_flops(checkpoint: Checkpoint, sites: list[Site]) -> int:
    """Scores and mixing of the last token over a full context, or over a window: 4 x positions x width."""
    config = checkpoint.config
    context = getattr(config, "max_position_embeddings", None) or 0
    window, types = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)

    def positions(layer: int) -> int:
        slides = types[layer] == "sliding_attention" if types is not None else True
        return min(context, window) if window and slides else context

    return sum(4 * positions(s.layer) * s.units * s.width for s in sites if s.kind == "kv_group")


def _cache_bytes(sites: list[Site], checkpoint: Checkpoint) -> int:
    """A key and a value of every KV head of every layer; of latent attention what it was made to keep, the latent and
    the rotary entries beside it, though `transformers` keeps whole heads. An encoder has no cache."""
    if not checkpoint.family.causal:
        return 0
    latents = {s.layer for s in sites if s.kind == "latent"}
    whole = sum(2 * s.units * checkpoint.head_dim for s in sites if s.kind == "kv_group" and s.layer not in latents)
    return CACHE_BYTES * (whole + sum(_kept_of(s, checkpoint) for s in sites if s.kind == "latent"))


def _kept_of(latent: Site, checkpoint: Checkpoint) -> int:
    """Entries of a token that are cached of a latent: that of queries is none, and has nothing beside it."""
    layer = checkpoint.template.get_submodule(checkpoint.family.layers)[latent.layer]
    written = max(tensor_of(layer, cut.parameter).shape[0] for cut in latent.cuts if cut.axis == 0)
    return int(written) if written > latent.units else 0


def _parts(checkpoint: Checkpoint, sites: list[Site]) -> list[Part]:
    def row(name: str, count: int) -> Part:
        return {"part": name, "parameters": count, "share": count / checkpoint.parameters}

    attention = sum(s.params_per_unit for s in sites if s.kind == "attention")
    ffn = sum(s.params_per_unit for s in sites if s.kind == "ffn")
    if checkpoint.family.anatomies:
        attention, ffn = _matrices_of(checkpoint)
    in_layers = sum(checkpoint.layer_parameters(i) for i in range(checkpoint.layers))
    outside = checkpoint.parameters - in_layers
    return [
        row("attention", attention),
        row("ffn", ffn),
        row("the rest of the layers" if checkpoint.family.anatomies else NORMS, in_layers - attention - ffn),
        row("embeddings, head, final norm", outside),
    ]


def _matrices_of(checkpoint: Checkpoint) -> tuple[int, int]:
    """Entries of a detected architecture's modules whose units are heads, and of those that have channels."""
    family, sums = checkpoint.family, {"head": 0, "channel": 0}
    for layer in checkpoint.template.get_submodule(family.layers).children():
        own = [(u.kind, u.consumer.rpartition(".")[0]) for u in family.anatomy_of(layer).units if u.kind in sums]
        if family.experts is not None and submodule(layer, family.experts.path) is not None:
            own.append(("channel", family.experts.path))
        for kind, path in dict.fromkeys(own):
            sums[kind] += sum(p.numel() for p in layer.get_submodule(path).parameters()) if path else 0
    return sums["head"], sums["channel"]


def _weight_rows(checkpoint: Checkpoint, layers: list[nn.Module]) -> list[SiteRow]:
    linears = [linear for layer in layers for linear in linears_of(layer, checkpoint.family)]
    patterns = [f"{n}:{m}" for n, m in ((2, 4), (4, 8)) if all(x.shape[1] % m == 0 for x in linears)]
    return [
        {
            "kind": "weight",
            "per_layer": " or ".join(map(str, sorted({len(linears_of(x, checkpoint.family)) for x in layers})))
            + " Linears",
            "units": checkpoint.linear_parameters,
            "params_per_unit": 1,
            "share": checkpoint.linear_parameters / checkpoint.parameters,
            "keep": patterns,
            "legal": "any" + (f"; {', '.join(patterns)}" if patterns else "; neither 2:4 nor 4:8 fits"),
            "hardware": "2:4" if "2:4" in patterns else "-",
        }
    ]


def _site_rows(checkpoint: Checkpoint, sites: list[Site]) -> list[SiteRow]:
    """One row for each kind of site; channels of experts and of a plain FFN are apart."""
    legal = _legal_heads(checkpoint)
    rows: list[SiteRow] = []
    found = {(site.kind, site.expert is not None) for site in sites}
    for kind, routed in sorted(found, key=lambda key: (SITE_KINDS.index(key[0]), key[1])):
        own = [site for site in sites if (site.kind, site.expert is not None) == (kind, routed)]
        keep, text, hardware = _legal(own, legal, checkpoint)
        rows.append(
            {
                "kind": kind,
                "per_layer": _spread({site.units for site in own}) + (" an expert" if routed else ""),
                "units": sum(site.units for site in own),
                "params_per_unit": max(site.params_per_unit for site in own),
                "share": sum(site.units * site.params_per_unit for site in own) / checkpoint.parameters,
                "keep": keep,
                "legal": text,
                "hardware": hardware,
            }
        )
    return rows


def _legal_heads(checkpoint: Checkpoint) -> LegalHeads:
    """None are said of a detected architecture: which counts its class takes is found out when it's saved."""
    if checkpoint.family.anatomies:
        return LegalHeads((), (), None, ())
    return legal_heads(checkpoint.family, checkpoint.config.to_dict(), checkpoint.head_dim)


def _hidden_rows(checkpoint: Checkpoint) -> list[SiteRow]:
    """Hidden dimensions, where the stream may have another basis; the embeddings count twice, as they would then."""
    if not checkpoint.family.norms:
        return []
    units = int(checkpoint.config.hidden_size)
    layers = checkpoint.template.get_submodule(checkpoint.family.layers)
    named = [(layer, dict(layer.named_parameters())) for layer in layers.children()]
    seeing = sum(
        parameters[name].numel()
        for layer, parameters in named
        for name in (
            *producers(layer, checkpoint.family),
            *(
                n
                for norm, consumers in norm_consumers(layer, checkpoint.family)
                for n in (f"{norm}.weight", *consumers)
            ),
        )
    )
    step = dimension_multiple(checkpoint)
    per_unit = seeing // units + 1 + 2 * int(checkpoint.config.vocab_size)
    return [
        {
            "kind": "hidden",
            "per_layer": "all at once",
            "units": units,
            "params_per_unit": per_unit,
            "share": min(1.0, units * per_unit / checkpoint.parameters),
            "keep": {"from": step, "to": units, "step": step},
            "legal": f"1 to {units}" if step == 1 else f"{step} to {units} by {step}",
            "hardware": f"multiples of {HARDWARE_TILE}" if units >= 2 * HARDWARE_TILE else "-",
        }
    ]


def _spread(counts: set[int]) -> str:
    """`512`, or `310 to 512` where layers differ."""
    low, high = min(counts), max(counts)
    return str(high) if low == high else f"{low} to {high}"


def _legal(own: list[Site], legal: LegalHeads, checkpoint: Checkpoint) -> tuple[Counts, str, str]:
    """Counts that every layer may keep alike so that a stock class loads the result, as data and as text; and
    what hardware likes. Other counts, and layers that differ, load with the bundled modelling file."""
    kind, units = own[0].kind, max(site.units for site in own)
    if kind in REFITTED - HEADS:
        step = own[0].multiple
        text = f"1 to {units}" if step == 1 else f"{step} to {units} by {step}"
        hardware = f"multiples of {HARDWARE_TILE}" if units >= 2 * HARDWARE_TILE else "-"
        return {"from": step, "to": units, "step": step}, text + _by_file(checkpoint, kind), hardware
    if kind in HEADS and checkpoint.family.anatomies:
        step = own[0].groups
        text = f"{step} to {units}" + (f" by {step}" if step > 1 else "") + _by_file(checkpoint, kind)
        return {"from": step, "to": units, "step": step}, text, "powers of two" if units > 1 else "-"
    if kind in HEADS:
        counts = legal.query_heads if kind == "query_head" else legal.kv_groups
        if units != max(counts):  # layers that differ from their configuration already
            return [], f"1 to {units} with modelling file", "powers of two" if units > 1 else "-"
        return list(counts), _heads_text(counts, units, legal, checkpoint), "powers of two" if units > 1 else "-"
    if kind == "expert":
        least = own[0].least
        return {"from": least, "to": units, "step": 1}, f"{least} to {units}" + _by_file(checkpoint, kind), "-"
    if kind == "layer":
        return {"from": 1, "to": checkpoint.layers, "step": 1}, f"1 to {checkpoint.layers} layers", "-"
    return [0, 1], "0 with modelling file", "-"


def _by_file(checkpoint: Checkpoint, kind: str) -> str:
    """Of a detected architecture whose configuration has no keys for this kind of cut."""
    family = checkpoint.family
    return " with modelling file" if family.anatomies and kind not in family.stock else ""


def _heads_text(counts: tuple[int, ...], units: int, legal: LegalHeads, checkpoint: Checkpoint) -> str:
    if counts == (units,) and units > 1:
        return f"{units}; fewer with modelling file"
    text = ", ".join(map(str, counts))
    per_unit = 1 if units == checkpoint.config.num_attention_heads else checkpoint.config.num_attention_heads // units
    renamed = [count for count in counts if count * per_unit not in legal.own]
    return text + (f"; {', '.join(map(str, renamed))} as {legal.relabelled}" if renamed and legal.relabelled else "")


def _speed(kinds: set[str]) -> list[SpeedRow]:
    """What each kind of cut speeds up, and what it doesn't."""
    return [
        {"kind": kind, "speeds_up": about.speeds_up, "does_not": about.spares}
        for kind, about in KINDS.items()
        if kind in kinds | {"weight"}
    ]
