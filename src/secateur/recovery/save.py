"""What a training has come to, on disk: a plain checkpoint or an adapter, each proved in a fresh process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from secateur.model.heads import answer_of
from secateur.model.round_trip import verify, write_probe
from secateur.model.save import write_state
from secateur.recovery import adapters
from secateur.recovery.prove_adapter import prove
from secateur.recovery.task import Task
from secateur.recovery.train import TrainingResult
from secateur.report.schema.report import GateFindings


@torch.no_grad()
def save_checkpoint(task: Task, outcome: TrainingResult, folder: Path, work: Path) -> GateFindings:
    """Writes the recovered checkpoint into `folder`, which exists, and proves it; returns the gate's findings."""
    model = _on_cpu(outcome.model)
    write_state(folder, task.checkpoint, model.state_dict())
    _probe(model, task, work / "recovered.safetensors")
    return verify(folder, work / "recovered.safetensors", source=task.checkpoint.path)


@torch.no_grad()
def save_adapter(task: Task, outcome: TrainingResult, folder: Path, work: Path, merged: Path) -> GateFindings:
    """Writes the adapter into `folder` and the same merged into `merged`, for measuring; proves the adapter."""
    model = _on_cpu(outcome.model)
    _probe(model, task, work / "recovered.safetensors")
    adapters.save(model, folder, str(task.checkpoint.path))
    gate = prove(task.checkpoint.path, folder, work / "recovered.safetensors")
    plain = adapters.merge(model, {})
    # In fp32, as the adapter computes: rounding the sum would measure something else.
    write_state(merged, task.checkpoint, plain.state_dict(), torch.float32)
    return gate


def replace(folder: Path, new: Path) -> None:
    """Puts the files of one checkpoint in the place of another's, whose shards may be others."""
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    for file in new.iterdir():
        shutil.move(str(file), str(folder / file.name))


def _on_cpu(model: Any) -> Any:
    return model.to("cpu", torch.float32).eval()


def _probe(model: Any, task: Task, file: Path) -> None:
    rows, causal = task.text.reported, task.asking.head is None
    ids = rows.ids[:1] if rows.mask is None else rows.ids[:1, rows.mask[0].bool()]
    write_probe(file, ids, answer_of(model(input_ids=ids, use_cache=False) if causal else model(input_ids=ids)))
