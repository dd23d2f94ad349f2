"""Every site of a run, as the report lists it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from secateur.config.plan import SUB_BLOCKS
from secateur.model.sites import Site, sites_of

if TYPE_CHECKING:
    from secateur.pipeline.run import Run


def method_of(run: Run, site: Site) -> str:
    """The method that chose what went from a site of units, or that a sub-block goes."""
    if run.rules.plan is not None:
        entry = run.rules.plan.entry(site.name)
        return entry.method if entry is not None else "none"
    if site.kind in SUB_BLOCKS:
        return run.recipe.method_for(site.kind).name
    method = run.rules.units.method_for(site.kind)
    return method.name if method is not None else "none"


def sites_of_run(run: Run) -> list[dict[str, Any]]:
    """Hidden dimensions; layers and sub-blocks (all of them where some were to go); units; weights: a record each."""
    return [*_hidden(run), *_layers(run), *_sub_blocks(run), *_units(run), *_weights(run)]


def _hidden(run: Run) -> list[dict[str, Any]]:
    found = run.narrowed
    if found is None:
        return []
    return [
        {
            "name": "hidden",
            "kind": "hidden",
            "layer": None,
            "units": found.units,
            "kept": found.kept,
            "sparsity": 1 - found.kept / found.units,
            "parameters_removed": run.checkpoint.parameters - found.checkpoint.parameters,
            "method": found.method,
            "scores": list(found.scores),
            "energies": found.energies,
        }
    ]


def _layers(run: Run) -> list[dict[str, Any]]:
    method = run.recipe.method_for("layer").name if "layer" in run.recipe.sites else "plan"
    checkpoint, _ = run.sized
    return [
        _whole("layer", i, i in run.kept, checkpoint.layer_parameters(i), method, run.layer_scores.get(i))
        for i in range(run.checkpoint.layers)
        if run.layer_scores or i not in run.kept
    ]


def _sub_blocks(run: Run) -> list[dict[str, Any]]:
    kinds = {kind for _, kind in run.rules.dropped}
    (checkpoint, streamed), records = run.sized, []
    for index in run.kept if kinds else ():
        for site in sites_of(streamed.template(index), checkpoint.family, index, checkpoint.head_dim):
            if site.kind in kinds:
                part = (index, site.kind)
                stays, score = part not in run.rules.dropped, run.sub_block_scores.get(part)
                method = "plan" if run.rules.plan is not None else method_of(run, site)
                records.append(_whole(site.kind, index, stays, site.params_per_unit, method, score))
    return records


def _whole(kind: str, layer: int, stays: bool, parameters: int, method: str, score: float | None) -> dict[str, Any]:
    return {
        "name": f"layers.{layer}.{kind}",
        "kind": kind,
        "layer": layer,
        "units": 1,
        "kept": int(stays),
        "sparsity": float(not stays),
        "parameters_removed": 0 if stays else parameters,
        "method": method,
        "score": score,
    }


def _units(run: Run) -> list[dict[str, Any]]:
    records = []
    for cut in run.unit_cuts:
        if cut.site.kind in SUB_BLOCKS:
            continue
        gone = cut.site.units - len(cut.keep)
        records.append(
            {
                "name": cut.site.name,
                "kind": cut.site.kind,
                "layer": cut.site.layer,
                "units": cut.site.units,
                "kept": len(cut.keep),
                "sparsity": gone / cut.site.units,
                "parameters_removed": gone * cut.site.params_per_unit,
                "method": method_of(run, cut.site),
                "error_before_refit": cut.error_masked,
                "error_after_refit": cut.error,
                "damping": cut.damping,
            }
            | ({"scores": cut.scores} if cut.site.kind == "expert" else {})
            | ({"merged": [asdict(merge) for merge in cut.merged]} if cut.merged is not None else {})
        )
    return records


def _weights(run: Run) -> list[dict[str, Any]]:
    records = []
    for layer, weight in run.weight_cuts:
        size = weight.shape[0] * weight.shape[1]
        records.append(
            {
                "name": f"layers.{layer}.{weight.linear}",
                "kind": "weight",
                "layer": layer,
                "linear": weight.linear,
                "units": size,
                "kept": size - round(weight.sparsity * size),
                "sparsity": weight.sparsity,
                "parameters_removed": 0,
                "weights_zeroed": round(weight.sparsity * size),
                "method": run.rules.weight_method.name if run.rules.weight_method else None,
                "pattern": str(run.rules.pattern),
                "error_after_refit": weight.error,
                "damping": weight.damping,
            }
        )
    return records
