"""What a format's exporter hands back to the one that called it."""

from __future__ import annotations

from dataclasses import dataclass, field

from secateur.report.schema.export import ClientProof, TensorProof


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
