"""What a format's exporter is given, and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from secateur.config.export import Export
from secateur.model.checkpoint import Checkpoint
from secateur.report.schema.export import ClientProof, TensorProof
from secateur.system.monitor import Monitor


@dataclass(frozen=True)
class Job:
    """One export.

    Args:
        folder: gets the files; exists.
        work: for what is needed meanwhile; exists.
        name: of the model, where the form has one.
    """

    checkpoint: Checkpoint
    folder: Path
    work: Path
    told: Export
    monitor: Monitor
    name: str


@dataclass(frozen=True)
class Made:
    """What was written and how it was proved.

    Args:
        architecture: as the client calls it.
        parameters: entries of all tensors in the files.
        numbers: the type of the matrices, or None where they are as they were.
        notes: what the report should say.
    """

    architecture: str
    parameters: int
    numbers: str | None = None
    read_back: TensorProof | None = None
    client: ClientProof | None = None
    notes: list[str] = field(default_factory=list)
