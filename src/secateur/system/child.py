"""Fresh interpreters: one that answers line by line, and one that is run to its end.

How far they have come, which they tell by `listening.telling_parent`, is told on here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from secateur.report.terminal.listening import heard
from secateur.system.malloc import give_back


class Ended(NamedTuple):
    """A process at its end: exit code, last line of its output (but what it told), last line of its complaints."""

    code: int
    answer: str
    complaint: str


def run(arguments: Sequence[str], changes: Mapping[str, str] | None = None) -> Ended:
    """Runs Python with some arguments to its end.

    Args:
        changes: of its environment.
    """
    answer = ""
    give_back()  # what is free here, the other one may need
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(changes or {})},
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                answer = answer if heard(line) else line.strip() or answer
        except BaseException:
            process.kill()
            raise
        code = process.wait()
        errors.seek(0)
        return Ended(code, answer, (errors.read().strip().splitlines() or [""])[-1])


class Child:
    """A process that does as it's told until the `with` block ends.

    Args:
        code: what it runs; its only argument is the order, as JSON.
        mark: what each of its answers begins with, as libraries may print what they like.
        changes: of its environment.
    """

    def __init__(
        self, code: str, order: Mapping[str, object], mark: str, changes: Mapping[str, str] | None = None
    ) -> None:
        self._mark = mark
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed below
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**_environment(), **(changes or {})},
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(BrokenPipeError):  # it may have gone before it read what it was told
                stream.close()  # type: ignore[union-attr]

    def ask(self, word: str = "") -> str | None:
        """Its answer to a word (to none: its next one), without the mark; None if it has ended instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(f"{word}\n" if word else "")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if not heard(line) and line.startswith(self._mark):
                return line.removeprefix(self._mark)
        return None

    def last_words(self) -> tuple[int, str]:
        """(exit code, last line of its complaints) of a process that has ended without an answer."""
        code = self._process.wait()
        self._errors.seek(0)
        return code, (self._errors.read().strip().splitlines() or [""])[-1]


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRANSFORMERS_VERBOSITY": "error"}
