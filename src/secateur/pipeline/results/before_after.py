"""Before and after: both models on held-out text, and the same openings continued by both."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

from secateur.calibration.activations import MemoryBudget
from secateur.config.aim import calibration_of_run
from secateur.config.recipe import Recipe
from secateur.data.batches import Calibration
from secateur.data.prompts import read_prompts
from secateur.errors import InputError
from secateur.evaluation.evaluation import evaluate, state_figures
from secateur.evaluation.generate import generate, opening_of
from secateur.evaluation.loading import load_tokenizer
from secateur.evaluation.streamed import evaluate_streamed
from secateur.evaluation.windows import context_length
from secateur.export.gguf.rounded import Rounded
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from secateur.pipeline.inputs import Inputs, Services
from secateur.pipeline.result import PassResult
from secateur.report.schema.figures import LossFigures
from secateur.report.schema.recovery import ModelState
from secateur.report.schema.report import Evaluation, ExportedFigures, Measured, Sample
from secateur.system.memory import fits_in_memory
from secateur.system.monitor import Monitor
from secateur.workspace.folder import PRUNED, UNTRAINED, Area, Workspace
from secateur.workspace.ownership import EXPORT

SAMPLES = 2
NOT_WANTED = "evaluate is none"


class BeforeAfter(NamedTuple):
    """Both models on held-out text.

    Args:
        sections: of the report: `evaluation`, and `samples` where there are some.
        states: the original, the pruned and the recovered model side by side, where there was a training.
        notes: what a report should say about them.
    """

    sections: Measured
    states: list[ModelState]
    notes: tuple[str, ...] = ()


def text_of(inputs: Inputs, result: PassResult, area: Area) -> tuple[str, str] | None:
    """(what to evaluate on, what to call it); None where there's no text, or no perplexity, or none is wanted."""
    return held_out_text(inputs, result, area) if inputs.checkpoint.family.causal else None


def held_out_text(inputs: Inputs, result: PassResult, area: Area) -> tuple[str, str] | None:
    """The same whatever the model predicts."""
    recipe, calibration = inputs.recipe, inputs.calibration
    if recipe.evaluate == "none":
        return None
    if recipe.evaluate is not None:
        return recipe.evaluate, recipe.evaluate
    if recipe.calibrate in ("stdlib", "stdlib:prose", "stdlib:code"):
        return recipe.calibrate, f"{recipe.calibrate}, files held out"
    if result.recovery is not None:  # the training may have seen what wasn't calibrated on
        return str(area.work / UNTRAINED), f"{recipe.calibrate}, sequences not trained on"
    if not len(calibration.held_out):
        return None
    return str(_held_out(calibration, area)), f"{calibration_of_run(recipe)}, sequences not calibrated on"


def not_evaluated(inputs: Inputs) -> Measured:
    """What a report says where nothing was evaluated: nothing, and why."""
    if inputs.dry_run:
        reason = "a dry run saves no model"
    elif inputs.recipe.evaluate == "none":
        reason = NOT_WANTED
    elif not inputs.checkpoint.family.causal:
        reason = f"{inputs.checkpoint.config.model_type} predicts no next token"
    else:
        reason = "the calibration text leaves no sequence over; give --evaluate"
    return {"evaluation": None, "not_evaluated": reason}


def _why_not(inputs: Inputs) -> tuple[str, ...]:
    """Why nothing is evaluated, where nobody said that it shouldn't be."""
    if inputs.recipe.evaluate == "none" or not inputs.checkpoint.family.causal:
        return ()
    return ("not evaluated: the calibration text leaves no sequence over; give --evaluate",)


def perplexities(inputs: Inputs, result: PassResult, services: Services) -> dict[str, float]:
    """Of the checkpoint that a pass has left, and of the one before its training if there was one; empty where it
    isn't evaluated, or doesn't fit in memory."""
    area, recipe = services.store.area, inputs.recipe
    text = text_of(inputs, result, area)
    if text is None or not fits_in_memory(inputs.checkpoint.parameters, inputs.judged_in, inputs.config.memory):
        return {}
    states = {"pruned": area.final}
    if result.recovery is not None:
        states = {"pruned": area.work / PRUNED, "recovered": area.final}
    measure = partial(evaluate, data=text[0], device=recipe.device, dtype=recipe.dtype, speed=False, quiet=True)
    with services.monitor.stage("evaluate"):
        return {state: measure(folder)["perplexity"] for state, folder in states.items()}


def before_and_after(
    inputs: Inputs, result: PassResult, workspace: Workspace, monitor: Monitor, memory: MemoryBudget
) -> BeforeAfter:
    """Before and after on held-out text, and samples of both."""
    recipe, text = inputs.recipe, text_of(inputs, result, workspace)
    if text is None:
        return BeforeAfter({}, [], _why_not(inputs))
    data, name = text
    notes: tuple[str, ...]
    if fits_in_memory(2 * inputs.checkpoint.parameters, inputs.judged_in, inputs.config.memory):
        with monitor.stage("evaluate"):
            found, notes = _evaluated(inputs, result, workspace, text)
    else:
        found = _evaluated_in_blocks(inputs, workspace, text, monitor, memory)
        notes = ("both models together exceed the memory: no speed, KL and samples",)
    # Paths of the work area mean nothing once it's gone.
    evaluation = found["evaluation"]
    assert evaluation is not None
    exported = _exported(inputs, workspace, data, monitor, memory)
    sides: list[tuple[LossFigures, str]]
    sides = [(evaluation["before"], recipe.model), (evaluation["after"], str(workspace.out))]
    if exported is not None:
        evaluation["exported"] = exported
        sides.append((exported, f"{workspace.out}/{EXPORT}"))
    for figures, model in sides:
        figures["model"] = model
        if recipe.evaluate is None:
            figures["data"] = name
            (only,) = figures["sets"].values()
            figures["sets"] = {name: {**only, "data": name}}
    states = _states(inputs, workspace, evaluation, data) if result.recovery is not None else []
    return BeforeAfter(found, states, notes)


def _states(inputs: Inputs, workspace: Workspace, evaluation: Evaluation, data: str) -> list[ModelState]:
    """The original, the pruned and the recovered model on the same text."""
    recipe = inputs.recipe
    rows: list[tuple[str, LossFigures]] = [("original", evaluation["before"]), ("recovered", evaluation["after"])]
    if fits_in_memory(inputs.checkpoint.parameters, inputs.judged_in, inputs.config.memory):
        pruned = evaluate(workspace.work / PRUNED, data, device=recipe.device, dtype=recipe.dtype, speed=False)
        pruned["sets"] = dict(zip(evaluation["after"]["sets"], pruned["sets"].values(), strict=True))
        rows.insert(1, ("pruned", pruned))
    return [state_figures(name, figures) for name, figures in rows]


def _evaluated(
    inputs: Inputs, result: PassResult, workspace: Workspace, text: tuple[str, str]
) -> tuple[Measured, tuple[str, ...]]:
    """Both models side by side: every figure, and samples; and notes."""
    recipe = inputs.recipe
    how = (recipe.device, recipe.dtype, None, recipe.speed)
    found = evaluate(workspace.final, text[0], inputs.checkpoint.path, *how)
    samples = _samples(inputs, result, workspace)
    notes = tuple(found.pop("notes", ()))
    before, kl = found.pop("reference"), found.pop("kl", None)
    ratios = found.pop("ratios", None)
    evaluation: Evaluation = {"before": before, "after": found, "kl": kl, "ratios": ratios, "data": text[1]}
    return {"evaluation": evaluation, **samples}, notes


def _evaluated_in_blocks(
    inputs: Inputs, workspace: Workspace, text: tuple[str, str], monitor: Monitor, memory: MemoryBudget
) -> Measured:
    """One model after the other, block by block."""
    both = inputs.checkpoint, Checkpoint.open(workspace.final)
    opened = [StreamedModel(one, inputs.streamed.device, inputs.judged_in) for one in both]
    with monitor.stage("evaluate", sum(one.layers for one in both)) as step:
        found = [evaluate_streamed(one, text[0], memory, workspace.work, step) for one in opened]
    return {"evaluation": {"before": found[0], "after": found[1], "data": text[1]}}


def _exported(
    inputs: Inputs, workspace: Workspace, data: str, monitor: Monitor, memory: MemoryBudget
) -> ExportedFigures | None:
    """The result as its export rounds it; None where that has floats."""
    told = inputs.recipe.export
    if told is None or not told.quantised:
        return None
    kind, checkpoint = str(told.type), Checkpoint.open(workspace.final)
    streamed = Rounded(checkpoint, inputs.streamed.device, inputs.judged_in, kind)
    with monitor.stage("evaluate the export", checkpoint.layers) as step:
        found = evaluate_streamed(streamed, data, memory, workspace.work, step)
    return {**found, "type": kind}


def _held_out(calibration: Calibration, area: Area) -> Path:
    file = area.work / "held_out.jsonl"
    rows = (json.dumps({"input_ids": row}) for row in calibration.held_out.tolist())
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


def _samples(inputs: Inputs, result: PassResult, workspace: Workspace) -> Measured:
    """The same prompts continued by both models, greedily; none where there's no tokenizer to show them."""
    if load_tokenizer(inputs.checkpoint.path) is None:
        return {}
    samples: list[Sample] = []
    for prompt in _prompts(inputs):
        found = generate(workspace.final, prompt, max_new_tokens=48, against=inputs.checkpoint.path)
        sample: Sample = {"prompt": prompt, "before": found["reference"]["text"], "after": found["text"]}
        if result.recovery is not None:
            sample["pruned"] = generate(workspace.work / PRUNED, prompt, max_new_tokens=48)["text"]
        samples.append(sample)
    return {"samples": samples}


def _prompts(inputs: Inputs) -> list[str]:
    """The user's own, or openings of text that wasn't calibrated on."""
    if inputs.recipe.prompts is not None:
        return read_prompts(inputs.recipe.prompts)
    calibration, tokenizer = inputs.calibration, load_tokenizer(inputs.checkpoint.path)
    source = calibration.held_out if len(calibration.held_out) else calibration.tokens
    return [prompt for row in source[:SAMPLES] if (prompt := opening_of(tokenizer, row))]


def check_prompts(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Refuses prompts that can't be read, or that leave no room for a continuation, before anything is written.

    Raises:
        InputError: in one line.
    """
    if recipe.prompts is None:
        return
    if recipe.evaluate == "none":
        raise InputError("--prompts: they are continued beside the evaluation, but evaluate is none; leave one out")
    prompts, tokenizer = read_prompts(recipe.prompts), load_tokenizer(checkpoint.path)
    room = context_length(checkpoint.config)
    if tokenizer is None:
        raise InputError(f"--prompts: {checkpoint.path} has no tokenizer to read them with; leave them out")
    for number, prompt in enumerate(prompts, 1):
        size = len(tokenizer(prompt)["input_ids"])
        if room is not None and size + 1 >= room:
            raise InputError(
                f"--prompts {recipe.prompts}: prompt {number} has {size} tokens and fills the context of {room}"
            )
