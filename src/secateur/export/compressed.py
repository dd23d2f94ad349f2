"""A result without its zeros, as `secateur compress` writes it: the last stage of a recipe that makes some."""

from __future__ import annotations

from secateur.export.result import Job, Made
from secateur.runtime.compress import KEPT, entries_of, proved, write_packed


def export(job: Job) -> Made:
    """Writes and proves it.

    Raises:
        InputError: nothing in the checkpoint is sparse enough to get smaller.
        VerificationError: what was written doesn't read back as it was.
    """
    checkpoint, folder = job.checkpoint, job.folder
    with job.monitor.stage("write"):
        write_packed(checkpoint.path, folder, entries_of(checkpoint.path, KEPT, False, _quiet), False, _quiet)
    with job.monitor.stage("prove"):
        figures, _ = proved(checkpoint.path, folder, False, _quiet)
    return Made(
        "secateur.load",
        checkpoint.parameters,
        read_back={"tensors": figures["tensors"], "largest_error": 0.0, "allowed": 0.0},
        notes=["secateur decompress makes the ordinary checkpoint of it"],
    )


def _quiet(_name: str) -> None:
    """The stage has no steps of its own."""
