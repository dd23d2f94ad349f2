"""What a recovery's report says."""

from __future__ import annotations

import json
import math
import platform
import shlex
import time
from pathlib import Path
from typing import cast

import torch
import transformers

from secateur._version import __version__
from secateur.config.training import Recovery
from secateur.evaluation.generate import generate, opening_of
from secateur.model.checkpoint import Checkpoint
from secateur.model.remote_code import brings_code
from secateur.recovery.forecast import as_dict
from secateur.recovery.task import Task
from secateur.recovery.train import TrainingResult
from secateur.report.schema.recovery import RecoveryFacts, Teacher
from secateur.report.schema.report import VERSION, Cut, Environment, ModelFacts, ResultFacts, Sample
from secateur.system.device import device_name, dtype_name
from secateur.system.monitor import Monitor

SAMPLES = 2
# Of the run that pruned the model: what was cut, and how, is as true after a training.
KEPT = (
    "model",
    "calibration",
    "sites",
    "reconstruction",
    "sparsity",
    "parameters",
    "result",
    "recipe",
    "recipe_yaml",
)


class Base(Cut):
    """What a recovery's report begins with."""

    version: int


class Surroundings(Environment):
    """When, and by which version too."""

    secateur: str
    created: str


def recovery_facts(task: Task, outcome: TrainingResult) -> RecoveryFacts:
    """The section `recovery`: what was told, what it cost, what came of it."""
    recovery, text, teacher = task.recovery, task.text, task.teacher
    shown: Teacher | None = None
    if teacher is not None:
        shown = {"path": str(teacher.path), "digest": teacher.digest, "dtype": task.teacher_dtype}
    return {
        "how": recovery.how,
        "loss": recovery.mix,
        "settings": recovery.model_dump(mode="json"),
        "teacher": shown,
        "layer_map": [list(pair) for pair in task.layers],
        "data": text.source,
        "data_sha256": text.source_sha256,
        "sequences_sha256": text.sha256,
        "sequences": len(text.train),
        "steps": outcome.steps,
        "tokens": outcome.steps * recovery.batch * recovery.length,
        "trained_parameters": outcome.trained_parameters,
        "optimizer": task.optimizer,
        "learning_rate": outcome.learning_rate or None,
        "rates_tried": [{"learning_rate": rate, "held_out": _finite(loss)} for rate, loss in outcome.tried],
        "held_out_before": outcome.start,
        "held_out_after": outcome.best.held_out,
        "best_step": outcome.best.step,
        "kept_start": outcome.best.step == 0,
        "masked_matrices": len(task.masks),
        "zeros_kept": outcome.zeros,
        "merged": recovery.how != "lora" or recovery.merge,
        "forecast": None if outcome.forecast is None else as_dict(outcome.forecast),
        "seconds": round(outcome.seconds, 3),
        "curve": outcome.curve,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def warnings_of(task: Task, outcome: TrainingResult) -> list[str]:
    """What a reader of the report should know."""
    found = list(task.notes)
    if outcome.best.step == 0:
        found.append("the training never got better than its start on the held-out sequences: the start was kept")
    if task.recovery.how == "lora" and not task.recovery.merge and task.masks:
        found.append("the adapter is dense: merging it into the model would fill the zeros; keep it apart")
    return found


def base_report(folder: Path, checkpoint: Checkpoint) -> Base:
    """What the pruned folder's own report says of the model; for a folder without one, what its files say."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        if "secateur" in report and isinstance(report.get("model"), dict):
            return cast("Base", {"version": VERSION, **{key: report[key] for key in KEPT if key in report}})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        pass
    config = checkpoint.config
    architecture = (config.architectures or [type(config).__name__])[0]
    model: ModelFacts = {
        "path": str(folder),
        "digest": checkpoint.digest,
        "architecture": architecture,
        "model_type": config.model_type,
        "dtype": dtype_name(checkpoint.dtype),
        "layers": checkpoint.layers,
    }
    auto_map = getattr(config, "auto_map", None)
    uneven = bool(auto_map) and not brings_code(auto_map)
    result: ResultFacts = {
        "loader": "transformers, trust_remote_code" if auto_map else "transformers",
        "architecture": architecture,
        "uniform": not uneven,
    }
    return {"version": VERSION, "model": model, "sites": [], "result": result}


def environment(device: torch.device, dtype: torch.dtype, monitor: Monitor) -> Surroundings:
    """Where and with what it ran."""
    return {
        "secateur": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "device": {
            "device": str(device),
            "name": device_name(device),
            "threads": torch.get_num_threads(),
            "dtype": dtype_name(dtype),
        },
        "stages": monitor.facts(),
    }


def command(model: str, recovery: Recovery, out: Path) -> str:
    """What repeats the run."""
    words = ["secateur", "recover", model]
    for name, value in recovery.model_dump(exclude_defaults=True).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            mix = isinstance(value, dict)
            words += [flag, ",".join(f"{k}:{v:g}" for k, v in value.items()) if mix else str(value)]
    return shlex.join([*words, "--out", out.name])


def samples(task: Task, recovered: Path, original: Path | None, pruned: Path) -> list[Sample]:
    """The same openings continued greedily by the original, the pruned and the recovered model."""
    if task.tokenizer is None or task.asking.head is not None:
        return []
    found: list[Sample] = []
    for row in task.text.reported.ids[:SAMPLES]:
        prompt = opening_of(task.tokenizer, row)
        if prompt.strip():
            models = {"before": original, "pruned": pruned, "after": recovered}
            texts = {k: generate(m, prompt, max_new_tokens=48)["text"] for k, m in models.items() if m is not None}
            found.append(cast("Sample", {"prompt": prompt, **texts}))
    return found
