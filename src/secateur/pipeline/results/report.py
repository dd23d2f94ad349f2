"""What a run did, as data: the plan, the report, and the files beside the checkpoint."""

from __future__ import annotations

import json
import platform
import shutil
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import __version__ as safetensors_version

from secateur._version import __version__
from secateur.config.plan import Entry, Plan
from secateur.config.recipe import Recipe
from secateur.data.batches import Calibration
from secateur.evaluation.loading import load_tokenizer
from secateur.pipeline.results.before_after import before_and_after
from secateur.pipeline.results.evidence import EVIDENCE, evidence_json, evidence_record
from secateur.pipeline.results.sites import method_of, sites_of_run
from secateur.report import model_card
from secateur.report.html import page
from secateur.system.device import device_name
from secateur.workspace.folder import EVENTS, MARK, Workspace

if TYPE_CHECKING:
    from secateur.pipeline.run import Run


def make_plan(run: Run) -> Plan:
    """The plan that replays this run's choices."""
    entries = [
        Entry(
            site=cut.site.name,
            kind=cut.site.kind,
            layer=cut.site.layer,
            units=cut.site.units,
            sparsity=round(1 - len(cut.keep) / cut.site.units, 6),
            method=method_of(run, cut.site),
            keep=cut.keep,
        )
        for cut in run.unit_cuts
    ]
    for layer, cut in run.weight_cuts:
        method = run.rules.weight_method
        assert method is not None
        name, pattern = f"layers.{layer}.{cut.linear}", str(run.rules.pattern)
        size = cut.shape[0] * cut.shape[1]
        sparsity = run.rules.weight_sparsity(layer)(cut.linear)
        entries.append(Entry(name, "weight", layer, size, sparsity, method.name, pattern=pattern))
    checkpoint = run.checkpoint
    model = {"model_type": checkpoint.config.model_type, "layers": checkpoint.layers, "digest": checkpoint.digest}
    return Plan(model, _calibration(run), run.kept, tuple(entries))


def _calibration(run: Run) -> dict[str, Any]:
    c: Calibration = run.calibration
    return {
        "source": c.source,
        "data_sha256": c.source_sha256,
        "tokens_sha256": c.sha256,
        "samples": len(c.tokens),
        "length": c.tokens.shape[1],
        "seed": run.recipe.seed,
        "tokens": c.tokens.numel(),
    }


def finish(run: Run, plan: Plan, gate: dict[str, Any] | None, workspace: Workspace, dry_run: bool) -> dict[str, Any]:
    """Evaluates (unless nothing was saved) and puts the report together."""
    recipe = run.recipe
    report: dict[str, Any] = {
        "secateur": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "dry_run": dry_run,
        "recipe": recipe.model_dump(mode="json"),
        "recipe_yaml": recipe.to_yaml(),
        "command": _command(run, workspace),
        "model": _model(run),
        "calibration": _calibration(run),
        "sites": sites_of_run(run),
        "allocation": {"how": run.recipe.allocate if run.rules.plan is None else "plan", "shares": run.shares},
        "reconstruction": [{"layer": b.index, **asdict(b.tuned)} for b in run.blocks if b.tuned is not None],
        "sparsity": _sparsity(run),
        "parameters": parameters_of(run),
    }
    if gate is not None:
        config = json.loads((workspace.final / "config.json").read_text(encoding="utf-8"))
        uneven = "auto_map" in config
        report["result"] = {
            "loader": "transformers, trust_remote_code" if uneven else "transformers",
            "architecture": config["architectures"][0],
            "uniform": not uneven,
        }
        report["gate"] = gate
        report |= {"recovery": run.recovered} if run.recovered is not None else {}
        report |= before_and_after(run, workspace)
        # The forecast takes every weight that isn't cut for non-zero; where both models were read, it's known.
        for side in ("before", "after"):
            counted = report.get("evaluation", {}).get(side, {}).get("nonzero_parameters")
            if counted is not None:
                report["parameters"][f"nonzero_{side}"] = counted
    else:
        report["forecast"] = _forecast(run)
    report |= {"steps": _steps(run, report)} if run.steps else {}
    report["warnings"] = run.warnings
    report["versions"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "safetensors": safetensors_version,
    }
    report["device"] = {
        "device": str(run.streamed.device),
        "name": device_name(run.streamed.device),
        "threads": torch.get_num_threads(),
        "dtype": str(run.streamed.dtype).removeprefix("torch."),
    }
    report["stages"] = [asdict(stage) for stage in run.monitor.stages]
    return report


def _steps(run: Run, report: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a gradual run, before them the original model; the last one as it was evaluated with that."""
    evaluation = report.get("evaluation")
    start = {"step": 0, "share": 0.0, "parameters": report["parameters"]["before"], "perplexity": {}}
    start["nonzero_parameters"] = report["parameters"]["nonzero_before"]
    last = dict(run.steps[-1])
    if evaluation is not None:
        start["perplexity"] = {"original": evaluation["before"]["perplexity"]}
        states = {state["state"]: state["perplexity"] for state in (run.recovered or {}).get("states", [])}
        states.pop("original", None)
        last["perplexity"] = states or {"pruned": evaluation["after"]["perplexity"]}
    return [start, *run.steps[:-1], last]


def _command(run: Run, workspace: Workspace) -> str:
    """What repeats the run, from inside its output folder; a replayed plan is part of it."""
    replayed = " --plan plan.json" if run.rules.plan is not None else ""
    return f"secateur prune --recipe recipe.yaml{replayed} --out {workspace.out.name}"


def _model(run: Run) -> dict[str, Any]:
    config = run.checkpoint.config
    return {
        "path": run.recipe.model,
        "digest": run.checkpoint.digest,
        "architecture": (config.architectures or [type(config).__name__])[0],
        "model_type": config.model_type,
        "dtype": str(run.checkpoint.dtype).removeprefix("torch."),
        "layers": run.checkpoint.layers,
    }


def parameters_of(run: Run) -> dict[str, int]:
    """Parameters of both models, all and those that aren't zero, by what was cut."""
    before = run.checkpoint.parameters
    after = before + run.added_parameters
    after -= sum(int(site["parameters_removed"]) for site in sites_of_run(run))
    zeroed = sum(int(site.get("weights_zeroed", 0)) for site in sites_of_run(run))
    return {"before": before, "after": after, "nonzero_before": before, "nonzero_after": after - zeroed}


def _sparsity(run: Run) -> dict[str, Any]:
    found = parameters_of(run)
    (narrow, _), linear = run.sized, run.checkpoint.linear_parameters
    gone = narrow.parameters - found["nonzero_after"] + run.added_parameters
    gone += linear - narrow.linear_parameters
    return {
        "requested": run.recipe.model_dump(mode="json")["sparsity"],
        "parameters": 1 - found["nonzero_after"] / found["before"],
        "linear_weights": min(1.0, gone / linear) if linear else 0.0,
    }


def _forecast(run: Run) -> dict[str, Any]:
    """What the checkpoint of a dry run would be."""
    found = parameters_of(run)
    layers = sum(x.shape[0] * x.shape[1] for b in run.blocks for x in b.weights)
    zeros = sum(round(x.sparsity * x.shape[0] * x.shape[1]) for b in run.blocks for x in b.weights)
    return {
        "parameters": found["after"],
        "bytes_on_disk": round(run.checkpoint.bytes_on_disk * found["after"] / found["before"]),
        "zeros_in_matrices": zeros / layers if layers else 0.0,
    }


def make_evidence(run: Run) -> dict[str, Any] | None:
    """Why the removed units went; None where no unit did, or where it wasn't asked for."""
    cuts = [cut for cut in run.unit_cuts if cut.evidence is not None]
    if not cuts:
        return None
    tokenizer = load_tokenizer(run.checkpoint.path)
    return evidence_record(cuts, run.calibration.tokens, tokenizer, run.recipe.refit)


def write_outputs(
    report: dict[str, Any], plan: Plan, recipe: Recipe, workspace: Workspace, evidence: dict[str, Any] | None
) -> None:
    """events.jsonl, plan.json, recipe.yaml, evidence.json, README.md, report.html, and report.json last of all."""
    folder = workspace.final
    if evidence is not None:
        (folder / EVIDENCE).write_text(evidence_json(evidence), encoding="utf-8")
    shutil.copyfile(workspace.work / EVENTS, folder / EVENTS)
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    (folder / "README.md").write_text(model_card.model_card(report), encoding="utf-8")
    page.write(report, folder, evidence)
    # What --overwrite may replace later: these files, and nothing that others put beside them.
    report["files"] = sorted({MARK, *(file.name for file in folder.iterdir())})
    (folder / MARK).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
