"""What a run did, as data: the plan and the report."""

from __future__ import annotations

import json
import platform
import time

import torch
import transformers
from safetensors import __version__ as safetensors_version

from secateur._version import __version__
from secateur.calibration.activations import MemoryBudget
from secateur.config.plan import Entry, Plan
from secateur.model.checkpoint import Checkpoint
from secateur.model.containers.cache import origin_of
from secateur.model.counting import count_nonzero
from secateur.model.remote_code import brings_code, hashes
from secateur.pipeline.inputs import Inputs
from secateur.pipeline.result import PassResult
from secateur.pipeline.results.agreement import agreed
from secateur.pipeline.results.before_after import before_and_after, not_evaluated
from secateur.pipeline.results.clients import ways_of
from secateur.pipeline.results.sites import method_of, sites_of_run, sized
from secateur.pipeline.results.tasks import judged_on_tasks
from secateur.report.schema.report import (
    VERSION,
    Asked,
    CalibrationFacts,
    Environment,
    ForecastFacts,
    GradualStep,
    ModelFacts,
    Outcome,
    ParameterCounts,
    Report,
    ResultFacts,
    SiteFacts,
    SparsityFacts,
    TunedBlock,
)
from secateur.system.device import device_name, dtype_name
from secateur.system.monitor import Monitor
from secateur.workspace.folder import Workspace


def make_plan(inputs: Inputs, result: PassResult) -> Plan:
    """The plan that replays this run's choices."""
    entries = [
        Entry(
            site=cut.site.name,
            kind=cut.site.kind,
            layer=cut.site.layer,
            units=cut.site.units,
            sparsity=round(1 - len(cut.keep) / cut.site.units, 6),
            method=method_of(inputs, cut.site),
            keep=cut.keep,
        )
        for cut in result.unit_cuts
    ]
    rules = result.rules
    for layer, cut in result.weight_cuts:
        assert rules.weight_method is not None
        name, pattern = f"layers.{layer}.{cut.linear}", str(rules.pattern)
        size = cut.shape[0] * cut.shape[1]
        sparsity = rules.weight_sparsity(layer)(cut.linear)
        entries.append(Entry(name, "weight", layer, size, sparsity, rules.weight_method.name, pattern=pattern))
    checkpoint = inputs.checkpoint
    model = {"model_type": checkpoint.config.model_type, "layers": checkpoint.layers, "digest": checkpoint.digest}
    return Plan(model, _calibration(inputs), result.kept, tuple(entries))


def _calibration(inputs: Inputs) -> CalibrationFacts:
    c = inputs.calibration
    found: CalibrationFacts = {
        "source": c.source,
        "data_sha256": c.source_sha256,
        "tokens_sha256": c.sha256,
        "samples": len(c.tokens),
        "length": c.tokens.shape[1],
        "seed": inputs.recipe.seed,
        "tokens": c.tokens.numel(),
    }
    return {**found, "general": c.general} if c.general else found


def make_report(
    inputs: Inputs, result: PassResult, plan: Plan, workspace: Workspace, monitor: Monitor, memory: MemoryBudget
) -> Report:
    """Evaluates (unless nothing was saved) and puts the report together."""
    sites = sites_of_run(inputs, result)
    counts = parameters_of(inputs, result, sites)
    chosen, outcome = _chosen(inputs, result, workspace, sites, counts), Outcome()
    warnings = [*inputs.notes, *result.warnings]
    if result.gate is not None:
        chosen["result"], outcome["gate"] = _loads_as(workspace), result.gate
        if result.recovery is not None:
            outcome["recovery"] = {**result.recovery}
        found = before_and_after(inputs, result, workspace, monitor, memory)
        outcome |= found.sections
        alike, told = agreed(inputs, result, workspace, monitor)
        outcome |= alike
        judged, notes = judged_on_tasks(inputs, result, workspace, monitor, found.sections)
        outcome |= judged
        warnings += [*found.notes, *told, *notes]
        if found.states:
            outcome["recovery"]["states"] = found.states
        # What was cut says nothing of zeros that were there before; the files do.
        counts["nonzero_before"] = count_nonzero(Checkpoint.open(inputs.lineage.path))
        counts["nonzero_after"] = count_nonzero(Checkpoint.open(workspace.final))
        chosen["sparsity"]["parameters"] = 1 - counts["nonzero_after"] / counts["before"]
    else:
        outcome["forecast"] = _forecast(inputs, result, counts)
    if outcome.get("evaluation") is None:
        outcome |= not_evaluated(inputs)
    if result.steps:
        outcome["steps"] = _steps(result, outcome, counts)
    return {**chosen, **outcome, "warnings": [*warnings, *monitor.notes], **_environment(inputs, monitor)}


def _chosen(
    inputs: Inputs, result: PassResult, workspace: Workspace, sites: list[SiteFacts], counts: ParameterCounts
) -> Asked:
    """What was asked for and what was cut."""
    recipe = inputs.recipe
    return {
        "version": VERSION,
        "secateur": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "dry_run": inputs.dry_run,
        "recipe": recipe.model_dump(mode="json"),
        "recipe_yaml": recipe.to_yaml(),
        "command": _command(inputs, workspace),
        "model": _model(inputs),
        "calibration": _calibration(inputs),
        "sites": sites,
        "allocation": {
            "how": recipe.allocate if inputs.rules.plan is None else "plan",
            "shares": dict(result.shares),
        },
        "reconstruction": _tuned(result, inputs.config.compile_blocks),
        "sparsity": _sparsity(inputs, result, counts),
        "parameters": counts,
    }


def _tuned(result: PassResult, compiled: bool) -> list[TunedBlock]:
    found: list[TunedBlock] = [
        {
            "layer": block.index,
            "before": block.tuned.before,
            "after": block.tuned.after,
            "held_out_before": block.tuned.held_out_before,
            "held_out_after": block.tuned.held_out_after,
            "steps": block.tuned.steps,
            "predictions": block.tuned.predictions,
        }
        for block in result.blocks
        if block.tuned is not None
    ]
    if compiled:
        reasons = [block.tuned.eager for block in result.blocks if block.tuned is not None]
        for own, reason in zip(found, reasons, strict=True):
            own["compiled"] = reason is None
    return found


def _loads_as(workspace: Workspace) -> ResultFacts:
    """Under which class the result loads."""
    config = json.loads((workspace.final / "config.json").read_text(encoding="utf-8"))
    uneven = "auto_map" in config and not brings_code(config["auto_map"])
    loader = "transformers, trust_remote_code" if "auto_map" in config else "transformers"
    return {
        "loader": loader,
        "architecture": config["architectures"][0],
        "uniform": not uneven,
        "clients": ways_of(workspace.final),
    }


def _environment(inputs: Inputs, monitor: Monitor) -> Environment:
    """Versions, device, and what each stage took."""
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "safetensors": safetensors_version,
        },
        "device": {
            "device": str(inputs.streamed.device),
            "name": device_name(inputs.streamed.device),
            "threads": torch.get_num_threads(),
            "dtype": dtype_name(inputs.streamed.dtype),
        },
        "stages": monitor.facts(),
    }


def _steps(result: PassResult, outcome: Outcome, counts: ParameterCounts) -> list[GradualStep]:
    """The steps of a gradual run, before them the original model; the last one as it was evaluated with that."""
    evaluation = outcome.get("evaluation")
    start: GradualStep = {
        "step": 0,
        "share": 0.0,
        "parameters": counts["before"],
        "perplexity": {},
        "nonzero_parameters": counts["nonzero_before"],
    }
    last: GradualStep = {**result.steps[-1]}
    if evaluation is not None:
        start["perplexity"] = {"original": evaluation["before"]["perplexity"]}
        rows = outcome["recovery"].get("states", []) if "recovery" in outcome else []
        states = {row["state"]: row["perplexity"] for row in rows if row["state"] != "original"}
        last["perplexity"] = states or {"pruned": evaluation["after"]["perplexity"]}
    return [start, *result.steps[:-1], last]


def _command(inputs: Inputs, workspace: Workspace) -> str:
    """What repeats the run, from inside its output folder; a replayed plan is part of it."""
    replayed = " --plan plan.json" if inputs.rules.plan is not None else ""
    return f"secateur prune --recipe recipe.yaml{replayed} --out {workspace.out.name}"


def _model(inputs: Inputs) -> ModelFacts:
    config = inputs.checkpoint.config
    found: ModelFacts = {
        "path": inputs.recipe.model,
        "digest": inputs.checkpoint.digest,
        "architecture": (config.architectures or [type(config).__name__])[0],
        "model_type": config.model_type,
        "dtype": dtype_name(inputs.checkpoint.dtype),
        "layers": inputs.checkpoint.layers,
    }
    stored_as = origin_of(inputs.lineage.path)
    if stored_as is not None:
        found["stored_as"] = stored_as
    if brings_code(getattr(inputs.checkpoint.whole_config, "auto_map", None)):
        found["remote_code"] = hashes(inputs.lineage.path)
    return found


def parameters_of(inputs: Inputs, result: PassResult, sites: list[SiteFacts]) -> ParameterCounts:
    """Parameters of both models, all and those that aren't zero, by what was cut."""
    before = inputs.checkpoint.parameters
    after = before + result.added_parameters - sum(int(site["parameters_removed"]) for site in sites)
    zeroed = sum(int(site.get("weights_zeroed", 0)) for site in sites)
    return {"before": before, "after": after, "nonzero_before": before, "nonzero_after": after - zeroed}


def _sparsity(inputs: Inputs, result: PassResult, counts: ParameterCounts) -> SparsityFacts:
    narrow, linear = sized(inputs, result), inputs.checkpoint.linear_parameters
    gone = narrow.parameters - counts["nonzero_after"] + result.added_parameters
    gone += linear - narrow.linear_parameters
    return {
        "requested": inputs.recipe.model_dump(mode="json")["sparsity"],
        "parameters": 1 - counts["nonzero_after"] / counts["before"],
        "linear_weights": min(1.0, gone / linear) if linear else 0.0,
    }


def _forecast(inputs: Inputs, result: PassResult, counts: ParameterCounts) -> ForecastFacts:
    """What the checkpoint of a dry run would be."""
    cuts = [cut for _, cut in result.weight_cuts]
    layers = sum(cut.shape[0] * cut.shape[1] for cut in cuts)
    zeros = sum(round(cut.sparsity * cut.shape[0] * cut.shape[1]) for cut in cuts)
    return {
        "parameters": counts["after"],
        "bytes_on_disk": round(inputs.checkpoint.bytes_on_disk * counts["after"] / counts["before"]),
        "zeros_in_matrices": zeros / layers if layers else 0.0,
    }
