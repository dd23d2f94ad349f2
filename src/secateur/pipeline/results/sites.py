"""Every site of a run, as the report lists it."""

from __future__ import annotations

from secateur.model.checkpoint import Checkpoint
from secateur.model.site_kinds import KINDS, SUB_BLOCKS
from secateur.model.sites import Site
from secateur.pipeline.inputs import Inputs
from secateur.pipeline.result import PassResult
from secateur.report.schema.report import SiteFacts


def method_of(inputs: Inputs, site: Site) -> str:
    """The method that chose what went from a site of units, or that a sub-block goes."""
    if inputs.rules.plan is not None:
        entry = inputs.rules.plan.entry(site.name)
        return entry.method if entry is not None else "none"
    if site.kind in SUB_BLOCKS:
        return inputs.config.method_names[site.kind]
    method = inputs.rules.units.method_for(site.kind)
    return method.name if method is not None else "none"


def sized(inputs: Inputs, result: PassResult) -> Checkpoint:
    """The model by whose shapes the cuts are counted: without the hidden dimensions that went before them."""
    return inputs.checkpoint if result.narrowed is None else result.narrowed.checkpoint


def sites_of_run(inputs: Inputs, result: PassResult) -> list[SiteFacts]:
    """Hidden dimensions; layers and sub-blocks (all of them where some were to go); units; weights: a record each."""
    return [
        *_hidden(inputs, result),
        *_layers(inputs, result),
        *_sub_blocks(inputs, result),
        *_units(inputs, result),
        *_weights(inputs, result),
    ]


def _hidden(inputs: Inputs, result: PassResult) -> list[SiteFacts]:
    found = result.narrowed
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
            "parameters_removed": inputs.checkpoint.parameters - found.checkpoint.parameters,
            "method": found.method,
            "scores": list(found.scores),
            "energies": found.energies,
        }
    ]


def _layers(inputs: Inputs, result: PassResult) -> list[SiteFacts]:
    method = inputs.config.method_names["layer"] if "layer" in inputs.config.sites else "plan"
    checkpoint = sized(inputs, result)
    return [
        _whole("layer", i, i in result.kept, checkpoint.layer_parameters(i), method, result.layer_scores.get(i))
        for i in range(inputs.checkpoint.layers)
        if result.layer_scores or i not in result.kept
    ]


def _sub_blocks(inputs: Inputs, result: PassResult) -> list[SiteFacts]:
    kinds = {kind for _, kind in result.rules.dropped}
    checkpoint = sized(inputs, result)
    records: list[SiteFacts] = []
    for index in result.kept if kinds else ():
        for site in checkpoint.sites[index]:
            if site.kind in kinds:
                part = (index, site.kind)
                stays, score = part not in result.rules.dropped, result.sub_block_scores.get(part)
                method = "plan" if inputs.rules.plan is not None else method_of(inputs, site)
                records.append(_whole(site.kind, index, stays, site.params_per_unit, method, score))
    return records


def _whole(kind: str, layer: int, stays: bool, parameters: int, method: str, score: float | None) -> SiteFacts:
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


def _units(inputs: Inputs, result: PassResult) -> list[SiteFacts]:
    records: list[SiteFacts] = []
    for cut in result.unit_cuts:
        if cut.site.kind in SUB_BLOCKS:
            continue
        gone = cut.site.units - len(cut.keep)
        record: SiteFacts = {
            "name": cut.site.name,
            "kind": cut.site.kind,
            "layer": cut.site.layer,
            "units": cut.site.units,
            "kept": len(cut.keep),
            "sparsity": gone / cut.site.units,
            "parameters_removed": gone * cut.site.params_per_unit,
            "method": method_of(inputs, cut.site),
            "error_before_refit": cut.error_masked,
            "error_after_refit": cut.error,
            "damping": cut.damping,
        }
        if not KINDS[cut.site.kind].refitted:
            record["scores"] = cut.scores
        if cut.merged is not None:
            record["merged"] = [
                {"unit": merge.unit, "into": merge.into, "likeness": merge.likeness, "taken": merge.taken}
                for merge in cut.merged
            ]
        records.append(record)
    return records


def _weights(inputs: Inputs, result: PassResult) -> list[SiteFacts]:
    records: list[SiteFacts] = []
    for layer, weight in result.weight_cuts:
        assert inputs.rules.weight_method is not None
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
                "method": inputs.rules.weight_method.name,
                "pattern": str(inputs.rules.pattern),
                "error_after_refit": weight.error,
                "damping": weight.damping,
            }
        )
    return records
