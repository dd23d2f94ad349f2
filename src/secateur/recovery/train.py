"""One recovery from start to best state: forecast, range test, training, and what is left of it.

The order is `train`. What it needs again after an interruption is in the work area: the rate that was chosen (in the
journal), Trainer's last checkpoint, and the best state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import get_last_checkpoint

from secateur.evaluation.loading import load
from secateur.model.flops import flops_of
from secateur.recovery import adapters, masks, rate
from secateur.recovery.forecast import Forecast, operations
from secateur.recovery.rate import Tried
from secateur.recovery.session import Session
from secateur.recovery.states import BEST, START, Best, put_back, trained
from secateur.recovery.task import Task
from secateur.report.schema.recovery import CurvePoint
from secateur.system import distributed
from secateur.system.decisions import Decisions
from secateur.system.monitor import Monitor

MEASURED = 3  # steps that tell the pace; the first is slower and isn't counted


@dataclass
class TrainingResult:
    """What a training has come to.

    Args:
        model: the best state; plain, with adapters merged, unless they stay apart.
        start: loss of the held-out sequences before, `best` after, and at which step that was (0: nothing helped).
        curve: step, training loss and loss of the held-out sequences, as they came.
    """

    model: Any
    start: float
    best: Best
    learning_rate: float
    tried: list[Tried]
    forecast: Forecast | None
    curve: list[CurvePoint] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    trained_parameters: int = 0
    zeros: int = 0


def forecast(task: Task, work: Path, monitor: Monitor) -> Forecast:
    """What a training would cost; nothing is kept of it but a teacher's cache."""
    session = Session(task, work, monitor, Decisions())
    return _forecast(session, _look(session)[1])


def _look(session: Session) -> tuple[float, float]:
    """Loss of the held-out sequences now, and the seconds that a look takes."""
    with session.trainer(1e-9, 1, None, lambda state: None) as trainer:
        begin = time.monotonic()
        return trainer.look(), time.monotonic() - begin


def train(
    task: Task,
    work: Path,
    monitor: Monitor,
    decisions: Decisions,
    begun: Callable[[], None] = lambda: None,
    finish: bool = False,
) -> TrainingResult:
    """Trains, and keeps the best state by the held-out sequences; the start, if nothing is better.

    Under torchrun every rank calls this with the same `work`.

    Args:
        work: states and checkpoints; what is in it is gone on from.
        decisions: what an interrupted run has found is in them.
        begun: called once there's something that a later run could go on from.
        finish: train no further, take the best state that an interrupted run has left.
    """
    session = Session(task, work, monitor, decisions)
    start, look_seconds = _look(session)
    outcome = TrainingResult(session.model, start, Best(0, start), 0.0, [], None)
    outcome.trained_parameters = sum(p.numel() for p in trained(session.model).values())
    if not finish:
        outcome.forecast = _forecast(session, look_seconds)
        begun()
        outcome.learning_rate, outcome.tried = _rate(session, start)
        _run(session, outcome)
    best = session.states.best()
    if best is not None and best.held_out < start:
        outcome.best = best
    _take(session, outcome, BEST if outcome.best is best else START)
    return outcome


def _take(session: Session, outcome: TrainingResult, state: str) -> None:
    """Gives the outcome the model in one of its states."""
    task = session.task
    if task.recovery.shard:  # nobody has it whole, so the first rank reads it anew; the others need none
        session.model = task.model = None
        if distributed.is_main():
            session.model = load(task.checkpoint.path, "cpu", "float32").model
            put_back(session.model, session.states.read(state))
    else:
        session.states.get(state, session.model)
    outcome.model = session.model
    if session.model is not None and (task.recovery.how != "lora" or task.recovery.merge):
        outcome.model, outcome.zeros = _plain(session)


def _forecast(session: Session, look_seconds: float) -> Forecast:
    """From a few measured steps, whose effect is undone."""
    return Forecast(**session.decisions.decide("forecast", lambda: asdict(_measured(session, look_seconds))))


def _measured(session: Session, look_seconds: float) -> Forecast:
    task, recovery = session.task, session.task.recovery
    times = [time.monotonic()]
    with session.monitor.stage("forecast"):
        session.short_run(1e-9, MEASURED, lambda state: times.append(time.monotonic()))
    pace = (times[-1] - times[1]) / (len(times) - 2)
    teacher = task.teacher if recovery.teacher_cache is None else None
    tokens = recovery.steps * recovery.batch * recovery.length
    flops = operations(
        flops_of(task.checkpoint.path),
        0 if teacher is None else flops_of(teacher.path),
        tokens,
        recovery.how,
        recovery.checkpointing,
    )
    tests = 0 if recovery.learning_rate is not None else 3  # short runs that a range test mostly takes
    short = rate.short_steps(recovery.steps)
    looks = -(-recovery.steps // recovery.looks) + tests
    seconds = pace * (recovery.steps + tests * short) + look_seconds * looks
    made = Forecast(tokens, flops, session.monitor.stages[-1].peak_memory_bytes, pace, seconds)
    session.monitor.say(made.line())
    return made


def _rate(session: Session, start: float) -> tuple[float, list[Tried]]:
    """The learning rate: as told, as noted before an interruption, or by the range test."""
    recovery = session.task.recovery
    if recovery.learning_rate is not None:
        return recovery.learning_rate, []
    tried = [Tried(*pair) for pair in session.decisions.decide("rates", lambda: _tried(session))]
    chosen = rate.choose(tried, start)
    listed = ", ".join(f"{t.rate:.2g}: {t.held_out:.4g}" for t in tried)
    session.monitor.say(f"learning rate {chosen:.2g} (held-out loss {start:.4g}; after short runs {listed})")
    return chosen, tried


def _tried(session: Session) -> list[list[float]]:
    """Rates, and the loss of the held-out sequences after a short run with each."""
    recovery = session.task.recovery
    steps = rate.short_steps(recovery.steps)
    width = int(session.task.checkpoint.config.hidden_size)
    with session.monitor.stage("learning rate") as step:

        def attempt(value: float) -> float:
            found = session.short_run(value, steps, lambda state: step(f"rate {value:.2g}"))
            return distributed.share_object(found, 0)

        return [list(pair) for pair in rate.search(attempt, rate.first_rate(recovery.how, width))]


def _run(session: Session, outcome: TrainingResult) -> None:
    """The training itself, from Trainer's last checkpoint if there is one."""
    recovery = session.task.recovery
    work = session.work
    last = distributed.from_first(lambda: get_last_checkpoint(str(work)) if work.is_dir() else None)
    with session.monitor.stage("train", recovery.steps) as step:
        done = 0

        def stepped(state: Any) -> None:
            nonlocal done
            while done < state.global_step - 1:  # those of the run before
                done += 1
                step("done before", skipped=True)
            done += 1
            seen = next((entry for entry in reversed(state.log_history) if "eval_loss" in entry), None)
            step("" if seen is None else _seen(seen))

        begin = time.monotonic()
        best = session.states.best()
        lowest = min(outcome.start, best.held_out) if best is not None else outcome.start
        with session.trainer(outcome.learning_rate, recovery.steps, lowest, stepped) as trainer:
            trainer.train(resume_from_checkpoint=last)
            outcome.curve = _curve(trainer.state.log_history)
            outcome.steps = trainer.state.global_step
        outcome.seconds = time.monotonic() - begin


def _seen(entry: dict[str, float]) -> str:
    name = "perplexity" if "eval_perplexity" in entry else "loss"
    return f"held-out {name} {entry[f'eval_{name}']:.4g}"


def _curve(history: list[dict[str, float]]) -> list[CurvePoint]:
    """Losses by step."""
    found: list[CurvePoint] = []
    for entry in history:
        if "loss" in entry:
            found.append({"step": int(entry["step"]), "loss": entry["loss"]})
        elif "eval_loss" in entry:
            found.append({"step": int(entry["step"]), "held_out": entry["eval_loss"]})
    return found


@torch.no_grad()
def _plain(session: Session) -> tuple[Any, int]:
    """The model without adapters and masks, rounded as it will be saved, and how many zeros it has kept."""
    task = session.task
    if task.recovery.how == "lora":
        model = adapters.merge(session.model, task.masks)
    else:
        model = session.model
        masks.release(model, task.masks)
    stored = task.checkpoint.target_dtypes
    for name, parameter in model.named_parameters():
        parameter.copy_(parameter.to(stored.get(name, task.checkpoint.dtype)))
    return model.eval().requires_grad_(False), masks.check(model, task.masks)
