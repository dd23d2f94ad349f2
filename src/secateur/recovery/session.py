"""The model with what is trained in it, the teacher, and the trainers that a recovery makes of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.calibration.activations import MemoryBudget
from secateur.errors import InputError
from secateur.evaluation.loading import load
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from secateur.recovery import adapters, masks, shard
from secateur.recovery.arguments import arguments
from secateur.recovery.int8 import load_int8
from secateur.recovery.muon import MuonAndAdamW
from secateur.recovery.sequences import Draw
from secateur.recovery.states import START, States, gathered
from secateur.recovery.task import Task
from secateur.recovery.teacher import fingerprint, read_cache, top_of_streamed, top_of_teacher, write_cache
from secateur.recovery.trainer import Recoverer
from secateur.system import distributed
from secateur.system.decisions import Decisions
from secateur.system.memory import fits_in_memory
from secateur.system.monitor import Monitor


class Session:
    """The model with what is trained in it, and all that its trainers share."""

    def __init__(self, task: Task, work: Path, monitor: Monitor, decisions: Decisions) -> None:
        self.task, self.work, self.monitor, self.decisions = task, work, monitor, decisions
        self.states = States(work)
        self.extra: dict[str, Tensor] = {}
        self.teacher = self._ready_teacher()
        recovery, family = task.recovery, task.checkpoint.family
        torch.manual_seed(recovery.seed)  # of the adapters' first values
        if recovery.how == "lora":
            self.model = adapters.add(task.model, family, recovery, task.masks)
        elif recovery.shard:
            self.model = shard.shard(task.model.requires_grad_(True), family, task.device, task.dtype)
            shard.hold(self.model, task.masks)
        else:
            self.model = task.model.requires_grad_(True)
            masks.hold(self.model, task.masks)
        self.states.put(START, gathered(self.model))

    def _ready_teacher(self) -> Any | None:
        """The teacher in memory, or its top logits beside the sequences."""
        task, recovery = self.task, self.task.recovery
        if task.teacher is None:
            return None
        if recovery.teacher_cache is not None:
            self.extra = self._cached()
            return None
        if recovery.shard and task.teacher_dtype != "int8":
            whole = load(task.teacher.path, "cpu", task.teacher_dtype).model
            return shard.shard(whole, task.teacher.family, task.device, getattr(torch, task.teacher_dtype))
        return self._loaded(task.teacher)

    def _loaded(self, teacher: Checkpoint) -> Any:
        """The teacher in memory, in the precision that was asked for."""
        task = self.task
        if task.teacher_dtype == "int8":
            return load_int8(teacher, task.device, task.dtype)
        model = load(teacher.path, str(task.device), task.teacher_dtype, encoders=True).model
        if task.asking.head is not None:  # a classifier of texts looks at the last token that isn't padding
            model.config.pad_token_id = task.model.config.pad_token_id
        return model

    def _cached(self) -> dict[str, Tensor]:
        """The cache's tensors; it is made first where there's none."""
        task, recovery = self.task, self.task.recovery
        teacher, rows = task.teacher, task.text.train
        assert teacher is not None
        assert recovery.top_k is not None
        assert recovery.teacher_cache is not None
        file = Path(recovery.teacher_cache)
        made_from = fingerprint(teacher, task.teacher_dtype, rows.ids, recovery.top_k, recovery.temperature)
        tensors: dict[str, Tensor] | None = None
        with distributed.in_step():
            if distributed.is_main() and file.exists():
                tensors = read_cache(file, made_from)
            elif distributed.is_main():
                with self.monitor.stage("teacher") as step:
                    tensors = self._top_of(teacher, recovery.top_k, step)
                write_cache(file, tensors, made_from)
        return distributed.share_tensors(tensors, 0, torch.device("cpu"))

    def _top_of(self, teacher: Checkpoint, k: int, step: Callable[[str], None]) -> dict[str, Tensor]:
        """The top logits, by the whole teacher where it fits in memory, otherwise block by block."""
        task, rows, temperature = self.task, self.task.text.train, self.task.recovery.temperature
        dtype = getattr(torch, task.teacher_dtype)
        if rows.positions is not None or fits_in_memory(teacher.parameters, dtype):
            inputs = {name: t for name, t in rows.inputs().items() if name != "labels"}
            return top_of_teacher(self._loaded(teacher), inputs, k, temperature, step)
        if dtype == torch.int8:
            raise InputError(
                f"{teacher.path}: doesn't fit in memory as int8 either; leave --teacher-dtype out, and its layers "
                "are read one by one"
            )
        return top_of_streamed(
            StreamedModel(teacher, task.device, dtype), rows.ids, k, temperature, MemoryBudget(None), self.work, step
        )

    @contextmanager
    def trainer(
        self, learning_rate: float, steps: int, start: float | None, stepped: Callable[[Any], None]
    ) -> Iterator[Recoverer]:
        """A trainer on the first sequences of the draw; `start`: it looks and saves too, knowing the loss to beat."""
        task, recovery = self.task, self.task.recovery
        how = arguments(recovery, self.work, task.device, task.dtype, learning_rate, steps, start is not None)
        made = Recoverer(
            self.model,
            how,
            recovery,
            Draw(task.text.train, steps * recovery.batch, recovery.seed, self.extra),
            task.text.held_out,
            self.teacher,
            task.layers,
            self.states,
            math.inf if start is None else start,
            stepped,
            self._optimizer(learning_rate) if task.optimizer == "muon" else None,
            task.asking,
        )
        try:
            with warnings.catch_warnings():  # no output of a sharded model is changed in place
                warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
                yield made
        finally:
            made.close()

    def _optimizer(self, learning_rate: float) -> Callable[[], MuonAndAdamW]:
        """Makes it once the model is where it is trained."""
        task = self.task
        decay = task.recovery.weight_decay
        return lambda: MuonAndAdamW(self.model, task.checkpoint.family.layers, task.masks, learning_rate, decay)

    def short_run(self, learning_rate: float, steps: int, stepped: Callable[[Any], None]) -> float:
        """Loss of the held-out sequences after so many steps from the start, to which the model then returns."""
        with self.trainer(learning_rate, steps, None, stepped) as trainer:
            trainer.train()
            found = trainer.look()
        self.states.get(START, self.model)
        return found
