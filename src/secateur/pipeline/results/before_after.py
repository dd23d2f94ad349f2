"""Before and after: both models on held-out text, and the same openings continued by both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.data.batches import Calibration
from secateur.evaluation.evaluation import evaluate, state_figures
from secateur.evaluation.generate import generate
from secateur.evaluation.loading import load_tokenizer
from secateur.evaluation.streamed import evaluate_streamed
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from secateur.system.memory import fits_in_memory
from secateur.workspace.folder import PRUNED, UNTRAINED, Area, Workspace

if TYPE_CHECKING:
    from secateur.pipeline.run import Run

PROMPT_TOKENS = 24
SAMPLES = 2


def text_of(run: Run, area: Area) -> tuple[str, str] | None:
    """(what to evaluate on, what to call it); None where there's nothing, or it isn't wanted."""
    recipe = run.recipe
    if recipe.evaluate == "none" or not run.checkpoint.family.causal:
        return None
    if recipe.evaluate is not None:
        return recipe.evaluate, recipe.evaluate
    if recipe.calibrate in ("stdlib", "stdlib:prose", "stdlib:code"):
        return recipe.calibrate, f"{recipe.calibrate}, files held out"
    if run.recovered is not None:  # the training may have seen what wasn't calibrated on
        return str(area.work / UNTRAINED), f"{recipe.calibrate}, sequences not trained on"
    if not len(run.calibration.held_out):
        run.warnings.append("not evaluated: the calibration text leaves no sequence over; give --evaluate")
        return None
    return str(_held_out(run.calibration, area)), f"{recipe.calibrate}, sequences not calibrated on"


def perplexities(run: Run, area: Area) -> dict[str, float]:
    """Of the checkpoint in `area`, and of the one before its training if there was one; empty where it isn't
    evaluated, or doesn't fit in memory."""
    text, recipe = text_of(run, area), run.recipe
    if text is None or not fits_in_memory(run.checkpoint.parameters, run.streamed.dtype, recipe.memory_bytes):
        return {}
    states = {"pruned": area.final}
    if run.recovered is not None:
        states = {"pruned": area.work / PRUNED, "recovered": area.final}
    how: dict[str, Any] = {"device": recipe.device, "dtype": recipe.dtype, "speed": False, "quiet": True}
    with run.monitor.stage("evaluate"):
        return {state: evaluate(folder, text[0], **how)["perplexity"] for state, folder in states.items()}


def before_and_after(run: Run, workspace: Workspace) -> dict[str, Any]:
    """Before and after on held-out text, and samples of both."""
    recipe, text = run.recipe, text_of(run, workspace)
    if text is None:
        return {}
    data, name = text
    if fits_in_memory(2 * run.checkpoint.parameters, run.streamed.dtype, recipe.memory_bytes):
        found = _evaluated(run, workspace, data)
    else:
        found = _evaluated_in_blocks(run, workspace, data)
    # Paths of the work area mean nothing once it's gone.
    for side, model in (("before", recipe.model), ("after", str(workspace.out))):
        figures = found["evaluation"][side]
        figures["model"] = model
        if recipe.evaluate is None:
            figures["data"] = name
            (only,) = figures["sets"].values()
            figures["sets"] = {name: only | {"data": name}}
    if run.recovered is not None:
        run.recovered["states"] = _states(run, workspace, found["evaluation"], data)
    found["evaluation"]["data"] = name
    return found


def _states(run: Run, workspace: Workspace, evaluation: dict[str, Any], data: str) -> list[dict[str, Any]]:
    """The original, the pruned and the recovered model on the same text."""
    rows = [("original", evaluation["before"]), ("recovered", evaluation["after"])]
    if fits_in_memory(run.checkpoint.parameters, run.streamed.dtype, run.recipe.memory_bytes):
        how: dict[str, Any] = {"device": run.recipe.device, "dtype": run.recipe.dtype, "speed": False}
        pruned = evaluate(workspace.work / PRUNED, data, **how)
        pruned["sets"] = dict(zip(evaluation["after"]["sets"], pruned["sets"].values(), strict=True))
        rows.insert(1, ("pruned", pruned))
    return [state_figures(name, figures) for name, figures in rows]


def _evaluated(run: Run, workspace: Workspace, data: str) -> dict[str, Any]:
    """Both models side by side: every figure, and samples."""
    recipe = run.recipe
    with run.monitor.stage("evaluate"):
        found = evaluate(
            workspace.final,
            data,
            against=run.checkpoint.path,
            device=recipe.device,
            dtype=recipe.dtype,
            speed=recipe.speed,
        )
        samples = _samples(run, workspace)
    run.warnings += found.pop("notes", [])
    before, kl = found.pop("reference"), found.pop("kl", None)
    ratios = found.pop("ratios", None)
    return {"evaluation": {"before": before, "after": found, "kl": kl, "ratios": ratios}} | samples


def _evaluated_in_blocks(run: Run, workspace: Workspace, data: str) -> dict[str, Any]:
    """One model after the other, block by block."""
    after = StreamedModel(Checkpoint.open(workspace.final), run.streamed.device, run.streamed.dtype)
    layers = run.checkpoint.layers + after.checkpoint.layers
    with run.monitor.stage("evaluate", layers) as step:
        sides = {
            name: evaluate_streamed(streamed, data, run.budget(), workspace.work, step)
            for name, streamed in (("before", run.streamed), ("after", after))
        }
    run.warnings.append("both models together exceed the memory: no speed, KL and samples")
    return {"evaluation": sides}


def _held_out(calibration: Calibration, area: Area) -> Path:
    file = area.work / "held_out.jsonl"
    rows = (json.dumps({"input_ids": row}) for row in calibration.held_out.tolist())
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


def _samples(run: Run, workspace: Workspace) -> dict[str, Any]:
    """The same openings continued by both models, greedily; none where there's no tokenizer to show them."""
    tokenizer = load_tokenizer(run.checkpoint.path)
    if tokenizer is None:
        return {}
    source = run.calibration.held_out if len(run.calibration.held_out) else run.calibration.tokens
    samples = []
    for row in source[:SAMPLES]:
        prompt = tokenizer.decode(row[:PROMPT_TOKENS], skip_special_tokens=True)
        if prompt.strip():
            found = generate(workspace.final, prompt, max_new_tokens=48, against=run.checkpoint.path)
            texts = {"before": found["reference"]["text"], "after": found["text"]}
            if run.recovered is not None:
                texts["pruned"] = generate(workspace.work / PRUNED, prompt, max_new_tokens=48)["text"]
            samples.append({"prompt": prompt, **texts})
    return {"samples": samples}
