"""The state of a run, and how a finished block is kept and found again after an interruption."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from secateur._version import __version__
from secateur.calibration.activations import MemoryBudget
from secateur.config.recipe import Recipe
from secateur.cut.block import BlockCuts
from secateur.cut.hidden import Narrowed
from secateur.cut.rules import Rules
from secateur.cut.units import UnitCut
from secateur.cut.weights import WeightCut
from secateur.data.batches import Calibration
from secateur.model.checkpoint import Checkpoint
from secateur.model.save import fill, read_block, write_block
from secateur.model.streamed import StreamedModel
from secateur.model.surgery import update_heads
from secateur.model.uneven import Widths
from secateur.pipeline.lineage import Lineage
from secateur.system import distributed
from secateur.system.monitor import Monitor, ProgressStep
from secateur.workspace.folder import EVENTS, Area, Workspace
from secateur.workspace.journal import Journal

FREE_SHARE = 0.6


@dataclass
class Run:
    """What a run knows, filled in from top to bottom."""

    recipe: Recipe
    checkpoint: Checkpoint
    calibration: Calibration
    streamed: StreamedModel
    rules: Rules
    monitor: Monitor
    journal: Journal | None = None
    kept: tuple[int, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)
    layer_scores: dict[int, float] = field(default_factory=dict)
    sub_block_scores: dict[tuple[int, str], float] = field(default_factory=dict)  # (layer, kind) -> loss without it
    blocks: list[BlockCuts] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    recovered: dict[str, Any] | None = None  # the report's section on the training after pruning
    before: Lineage | None = None  # what earlier passes did, see `lineage`
    steps: list[dict[str, Any]] = field(default_factory=list)  # of a gradual run, as the report lists them
    narrowed: Narrowed | None = None  # what has become of its hidden dimensions

    def budget(self) -> MemoryBudget:
        """Hidden states that may stay in memory: what the recipe says, else 60 % of what is free on this host."""
        total = self.recipe.memory_bytes
        if total is None:
            total = int(FREE_SHARE * psutil.virtual_memory().available) // distributed.local_world()
        return MemoryBudget(total)

    @property
    def lineage(self) -> Lineage:
        """How the checkpoint that is cut came from the original model; the same, unless there were passes before."""
        return self.before or Lineage.of(self.checkpoint.path, self.checkpoint.layers)

    @property
    def sized(self) -> tuple[Checkpoint, StreamedModel]:
        """The model by whose shapes the cuts are counted: without the hidden dimensions that went before them."""
        if self.narrowed is None:
            return self.checkpoint, self.streamed
        return self.narrowed.checkpoint, StreamedModel(
            self.narrowed.checkpoint, self.streamed.device, self.streamed.dtype
        )

    @property
    def unit_cuts(self) -> list[UnitCut]:
        return [cut for block in self.blocks for cut in block.units]

    @property
    def weight_cuts(self) -> list[tuple[int, WeightCut]]:
        return [(block.index, cut) for block in self.blocks for cut in block.weights]

    @property
    def widths(self) -> dict[int, Widths]:
        """Place in the pruned model -> widths of that layer."""
        return {place: block.widths for place, block in enumerate(self.blocks)}

    @property
    def added_parameters(self) -> int:
        return sum(block.added for block in self.blocks)


def begin(run: Run, workspace: Workspace) -> None:
    """Opens the journal and the event file in the work area; both go on where an interrupted run left them."""
    run.journal = Journal(workspace.work, fingerprint(run, run.recipe.steps))
    resumed = run.journal.begin(workspace.resume)
    run.monitor.record(workspace.work / EVENTS, distributed.world(), resumed)


def fingerprint(run: Run, step: int) -> dict[str, Any]:
    """Everything that decides the result of a step; an interrupted run goes on only if it was told the same."""
    return {
        **run.recipe.model_dump(mode="json", exclude={"memory"}),
        "calibration data": run.calibration.sha256,
        "checkpoint": run.checkpoint.digest,
        "plan": run.rules.plan.to_json() if run.rules.plan is not None else None,
        "step": step,
        "secateur": __version__,
    }


def keep_block(run: Run, layer: nn.Module, index: int, area: Area | None) -> None:
    """Writes a finished block and its line in the journal."""
    if area is None or run.journal is None:
        return
    write_block(area.blocks, layer, run.checkpoint, index)
    run.journal.block(index, run.blocks[-1].to_json())
    area.worth_keeping()


def finished_block(run: Run, index: int, area: Area | None, step: ProgressStep) -> nn.Module | None:
    """A block that the interrupted run has finished, on every rank; None if it's still to do."""
    record = run.journal.finished(index) if run.journal is not None else None
    if record is not None and run.journal is not None and not run.journal.intact(record):
        run.warnings.append(f"layer {index} was pruned again: its file in the work area was lost or damaged")
        record = None
    record = distributed.share_object(record, 0)
    if record is None:
        return None
    tensors = read_block(area.blocks, index) if area is not None else None
    shared = distributed.share_tensors(tensors, 0, run.streamed.device)
    layer = _layer_of(run.streamed, index, shared)
    run.blocks.append(BlockCuts.from_json(record))
    step(f"layer {index}, done before", skipped=True)
    return layer


def _layer_of(streamed: StreamedModel, index: int, tensors: dict[str, Tensor]) -> nn.Module:
    """Layer `index` with the tensors of its finished block."""
    layer = fill(streamed.template(index), tensors, streamed.dtype).to(streamed.device)
    update_heads(layer, streamed.checkpoint.family, streamed.checkpoint.head_dim)
    return layer


@torch.no_grad()
def logits_in_fp32(run: Run, ids: Tensor, area: Area) -> Tensor:
    """What the finished blocks compute on a CPU in fp32, for runs that compute in less.

    Args:
        ids: token ids (1, tokens).

    Returns: (1, tokens, vocabulary).
    """
    streamed = StreamedModel(run.checkpoint, torch.device("cpu"), torch.float32)
    hidden, calls = streamed.embed(ids)
    streamed.release()
    for index in run.kept:
        hidden = calls[index](_layer_of(streamed, index, read_block(area.blocks, index)), hidden)
    return streamed.logits(ids, hidden)
