"""What a pass over a model is given: what it is about, and what serves it. Nobody writes into either."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from secateur._version import __version__
from secateur.calibration.activations import MemoryBudget
from secateur.config.configuration import Configuration
from secateur.config.recipe import Recipe
from secateur.cut.rules import Rules
from secateur.data.batches import Calibration
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from secateur.pipeline.lineage import Lineage
from secateur.pipeline.store import Store
from secateur.system import accelerator, distributed
from secateur.system.device import dtype_name, resolve_dtype
from secateur.system.monitor import Monitor

FREE_SHARE = 0.6
DEVICE_SHARE = 0.4  # what is left of an accelerator is for a block or two, their statistics and what solves them


@dataclass(frozen=True)
class Inputs:
    """Everything that decides a pass's result.

    Args:
        recipe: what was asked, and `config` what that means.
        lineage: how the checkpoint came from the original model; the same, unless there were passes before.
        notes: what a report should say about them.
    """

    recipe: Recipe
    config: Configuration
    checkpoint: Checkpoint
    calibration: Calibration
    streamed: StreamedModel
    rules: Rules
    lineage: Lineage
    dry_run: bool = False
    notes: tuple[str, ...] = ()

    @property
    def judged_in(self) -> torch.dtype:
        """What both models are evaluated in; on a CPU wider than what the run computes in may be."""
        return resolve_dtype(self.recipe.dtype, self.streamed.device, self.checkpoint.config)

    def fingerprint(self, step: int) -> dict[str, object]:
        """Everything that decides the result of a step; an interrupted run goes on only if it was told the same."""
        return {
            **self.recipe.model_dump(mode="json", exclude={"memory", "export", "prompts"}),
            "computed in": dtype_name(self.streamed.dtype),
            "calibration data": self.calibration.sha256,
            "checkpoint": self.checkpoint.digest,
            "plan": self.rules.plan.to_json() if self.rules.plan is not None else None,
            "step": step,
            "secateur": __version__,
        }


@dataclass(frozen=True)
class Services:
    """What a pass works with.

    Args:
        memory: hidden states that may stay in memory, of all stages of a run together.
        scratch: where this rank's others go.
    """

    monitor: Monitor
    store: Store
    memory: MemoryBudget
    scratch: Path


def memory_for(config: Configuration, device: torch.device) -> MemoryBudget:
    """What was asked for, else 60 % of what is free on this host now, and 40 % of what is on the accelerator."""
    total = config.memory
    if total is None:
        total = int(FREE_SHARE * psutil.virtual_memory().available) // distributed.local_world()
    own = int(DEVICE_SHARE * accelerator.free_bytes(device)) if accelerator.has_own_memory(device) else 0
    return MemoryBudget(total, own if config.memory is None else min(own, config.memory))
