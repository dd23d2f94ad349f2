"""Before and after where there is no perplexity: how far the pruned model agrees with the original."""

from __future__ import annotations

from secateur.evaluation.agreement import agree
from secateur.pipeline.inputs import Inputs
from secateur.pipeline.result import PassResult
from secateur.pipeline.results.before_after import held_out_text
from secateur.report.schema.report import Measured
from secateur.system.memory import fits_in_memory
from secateur.system.monitor import Monitor
from secateur.workspace.folder import Workspace

TOO_LARGE = "not compared with the original: both models together exceed the memory"


def agreed(
    inputs: Inputs, result: PassResult, workspace: Workspace, monitor: Monitor
) -> tuple[Measured, tuple[str, ...]]:
    """The report's section, and notes. Nothing of models that have a perplexity, or where there's no text."""
    recipe, checkpoint = inputs.recipe, inputs.checkpoint
    text = None if checkpoint.family.causal else held_out_text(inputs, result, workspace)
    if text is None:
        return {}, ()
    if not fits_in_memory(2 * checkpoint.parameters, inputs.judged_in, inputs.config.memory):
        return {}, (TOO_LARGE,)
    data, name = text
    with monitor.stage("evaluate"):
        found = agree(workspace.final, data, inputs.lineage.path, recipe.device, recipe.dtype)
    figures = found["agreement"]
    if recipe.evaluate is None:  # a path of the work area means nothing once it's gone
        (only,) = figures.values()
        figures = {name: {**only, "data": name}}
    return {"agreement": figures}, tuple(found["notes"])
