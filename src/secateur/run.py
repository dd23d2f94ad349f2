"""The state of a run, and how a finished block is kept and found again after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

import secateur
from secateur import distributed
from secateur.cut.rules import Rules
from secateur.cut.units import UnitCut, update_heads
from secateur.cut.weights import WeightCut
from secateur.data.batches import Calibration
from secateur.journal import Journal, read_cuts, record_cuts
from secateur.model.checkpoint import Checkpoint
from secateur.model.outer import Outer
from secateur.model.save import fill, read_block, write_block
from secateur.model.uneven import Widths
from secateur.progress import Monitor
from secateur.recipe import Recipe
from secateur.workspace import EVENTS, Workspace


@dataclass
class Run:
    """What a run knows, filled in from top to bottom."""

    recipe: Recipe
    checkpoint: Checkpoint
    calibration: Calibration
    outer: Outer
    rules: Rules
    monitor: Monitor
    journal: Journal | None = None
    kept: tuple[int, ...] = ()
    layer_scores: dict[int, float] = field(default_factory=dict)
    unit_cuts: list[UnitCut] = field(default_factory=list)
    weight_cuts: list[tuple[int, WeightCut]] = field(default_factory=list)
    widths: dict[int, Widths] = field(default_factory=dict)
    added_parameters: int = 0
    warnings: list[str] = field(default_factory=list)


def begin(run: Run, workspace: Workspace) -> None:
    """Opens the journal and the event file in the work area; both go on where an interrupted run left them."""
    told = {
        **run.recipe.model_dump(mode="json", exclude={"memory"}),
        "calibration tokens": run.calibration.sha256,
        "checkpoint": run.checkpoint.digest,
        "plan": run.rules.plan.to_json() if run.rules.plan is not None else None,
        "secateur": secateur.__version__,
    }
    run.journal = Journal(workspace.work, told)
    resumed = workspace.resume and run.journal.resume()
    if not resumed:
        run.journal.start()
    run.monitor.record(workspace.work / EVENTS, distributed.world(), resumed)


def remember(run: Run, index: int, units: list[UnitCut], weights: list[WeightCut], widths: Widths) -> None:
    """Adds what was done to one block."""
    run.unit_cuts += units
    run.weight_cuts += [(index, cut) for cut in weights]
    run.widths[len(run.widths)] = widths


def keep_block(run: Run, layer: nn.Module, index: int, workspace: Workspace | None) -> None:
    """Writes a finished block and its line in the journal."""
    if workspace is None or run.journal is None:
        return
    write_block(workspace.blocks, layer, run.checkpoint, index)
    cuts = record_cuts(
        [cut for cut in run.unit_cuts if cut.site.layer == index],
        [cut for at, cut in run.weight_cuts if at == index],
    )
    run.journal.block(index, {**cuts, "widths": run.widths[len(run.widths) - 1], "added": run.added_parameters})
    workspace.keep = True


def finished_block(
    run: Run, index: int, workspace: Workspace | None, step: Callable[[str], None]
) -> nn.Module | None:
    """A block that the interrupted run has finished, on every rank; None if it's still to do."""
    record = run.journal.finished(index) if run.journal is not None else None
    if record is not None and run.journal is not None and not run.journal.intact(record):
        run.warnings.append(f"layer {index} was pruned again: its file in the work area was lost or damaged")
        record = None
    record = distributed.share_object(record, 0)
    if record is None:
        return None
    tensors = read_block(workspace.blocks, index) if workspace is not None else None
    shared = distributed.share_tensors(tensors, 0, run.outer.device)
    layer = fill(run.outer.template(index), shared, run.outer.dtype).to(run.outer.device)
    family, head_dim = run.checkpoint.family, run.checkpoint.head_dim
    update_heads(layer, family, head_dim)
    units, weights = read_cuts(record)
    remember(run, index, units, weights, record["widths"])
    run.added_parameters = record["added"]
    step(f"layer {index}, finished before")
    return layer
