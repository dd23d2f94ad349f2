"""The errors a user can meet: one line each, saying what was given, what is wrong and what would work.

The command line prints `error: <message>` and exits with 2 (the user's mistake) or 1 (ours). Library
callers catch `SecateurError`.
"""

from __future__ import annotations

from pathlib import Path


def install(extra: str) -> str:
    """The command that installs an extra: for a clone, in which the package is used where it lies, and elsewhere."""
    root = Path(__file__).resolve().parents[2]
    clone = (root / "pyproject.toml").is_file() and (root / "src" / "secateur").is_dir()
    return f'pip install -e "{root}[{extra}]"' if clone else f'pip install "secateur[{extra}]"'


class SecateurError(Exception):
    """Anything Secateur refuses. The message is one line for a person."""

    exit_code = 2


class InputError(SecateurError):
    """A path, a flag, a recipe or a file that can't be used as given."""


class UnsupportedModelError(SecateurError):
    """A checkpoint whose architecture is unknown, or whose cut no loader would accept."""


class ResourceError(SecateurError):
    """The machine lacks the disk or the memory for what was asked."""

    exit_code = 1


class RanksLost(ResourceError):
    """A process of a distributed run is gone."""


class VerificationError(SecateurError):
    """A saved checkpoint doesn't compute what the model in memory computed."""

    exit_code = 1


class Stopped(SecateurError):
    """The user stopped a run with Ctrl-C, or a scheduler with SIGTERM; the exit code is the one that shells give."""

    exit_code = 130

    def __init__(self, message: str, by_scheduler: bool = False) -> None:
        super().__init__(message)
        if by_scheduler:
            self.exit_code = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, which torchrun and SLURM send: the run stops as it does for Ctrl-C."""
