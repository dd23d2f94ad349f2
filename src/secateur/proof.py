"""Before and after: both models on held-out text, and the same openings continued by both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.data.batches import Calibration
from secateur.evaluation.evaluation import evaluate
from secateur.evaluation.generate import generate
from secateur.evaluation.loading import load_tokenizer
from secateur.evaluation.streamed import streamed_perplexity
from secateur.model.memory import fits_in_memory
from secateur.workspace import Workspace

if TYPE_CHECKING:
    from secateur.run import Run

PROMPT_TOKENS = 24
SAMPLES = 2


def before_and_after(run: Run, workspace: Workspace) -> dict[str, Any]:
    """Before and after on held-out text, and samples of both."""
    recipe = run.recipe
    if recipe.evaluate == "none" or not run.checkpoint.family.causal:
        return {}
    if not fits_in_memory(2 * run.checkpoint.parameters, run.outer.dtype):
        return _streamed_evaluation(run, workspace)
    data, name = recipe.evaluate, recipe.evaluate
    if data is None and recipe.calibrate.startswith("stdlib"):
        data, name = recipe.calibrate, f"{recipe.calibrate}, files held out"
    elif data is None:
        if not len(run.calibration.held_out):
            run.warnings.append("not evaluated: the calibration text leaves no sequence over; give --evaluate")
            return {}
        data, name = str(_held_out(run.calibration, workspace)), f"{recipe.calibrate}, sequences not calibrated on"
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
    # Paths of the work area mean nothing once it's gone.
    for side, model in ((before, recipe.model), (found, str(workspace.out))):
        side["model"] = model
        if recipe.evaluate is None:
            side["data"] = name
            (figures,) = side["sets"].values()
            side["sets"] = {name: figures | {"data": name}}
    return {"evaluation": {"data": name, "before": before, "after": found, "kl": kl, "ratios": ratios}} | samples


def _streamed_evaluation(run: Run, workspace: Workspace) -> dict[str, Any]:
    """Both models on the held-out sequences, block by block: for what doesn't fit in memory side by side."""
    tokens = run.calibration.held_out
    if not len(tokens):
        run.warnings.append("not evaluated: the model doesn't fit in memory and no sequence is left over")
        return {}
    sides = {}
    with run.monitor.stage("evaluate", 2) as step:
        for side, folder in (("before", run.checkpoint.path), ("after", workspace.final)):
            perplexity = streamed_perplexity(folder, tokens, run.outer.device, run.outer.dtype, work=workspace.work)
            sides[side] = {"perplexity": perplexity, "tokens": tokens[:, 1:].numel()}
            step(side)
    run.warnings.append("evaluated block by block on held-out sequences only: the model doesn't fit in memory")
    return {"evaluation": {"data": f"{run.recipe.calibrate}, sequences not calibrated on", **sides}}


def _held_out(calibration: Calibration, workspace: Workspace) -> Path:
    file = workspace.work / "held_out.jsonl"
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
            samples.append({"prompt": prompt, "before": found["reference"]["text"], "after": found["text"]})
    return {"samples": samples}
