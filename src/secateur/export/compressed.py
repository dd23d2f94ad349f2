"""A result without its zeros, as `secateur compress` writes it: the last stage of a recipe that makes some."""

from __future__ import annotations

from functools import partial

from secateur.export.result import Job, Made
from secateur.report.derived_card import compressed_card
from secateur.report.schema.model import Compressed
from secateur.runtime.compress import KEPT, looked_at, proved, write_packed
from secateur.runtime.transfer import write_card


def export(job: Job) -> Made:
    """Writes and proves it, with its card.

    Raises:
        InputError: nothing in the checkpoint is sparse enough to get smaller.
        VerificationError: what was written doesn't read back as it was.
    """
    checkpoint, folder = job.checkpoint, job.folder
    with job.monitor.stage("write"):
        write_packed(checkpoint.path, folder, looked_at(checkpoint.path, KEPT, False, _quiet), False, _quiet)
    with job.monitor.stage("prove"):
        figures, negative = proved(checkpoint.path, folder, False, _quiet)
    found: Compressed = {
        "model": job.name,
        "out": str(folder),
        **figures,
        "exact_bits": False,
        "negative_zeros": negative,
        "seconds": 0.0,
        "warnings": [],
    }
    write_card(folder, checkpoint.path, partial(compressed_card, found))
    return Made(
        "secateur.load",
        checkpoint.parameters,
        read_back={"tensors": figures["tensors"], "largest_error": 0.0, "allowed": 0.0},
        notes=["secateur decompress makes the ordinary checkpoint of it"],
    )


def _quiet(_name: str) -> None:
    """The stage has no steps of its own."""
