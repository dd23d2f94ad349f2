"""Choices that were measured on this machine before, in the user's cache: a model is then loaded in less time, and
runs as it ran the time before."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from secateur._version import __version__
from secateur.data.cache import kept_pairs
from secateur.runtime.kernels.jit import host

T = TypeVar("T")
FOLDER = "runtime"


def measured_before(
    kind: type[T], about: tuple[object, ...], measure: Callable[[], T], sound: Callable[[T], bool]
) -> T:
    """What `measure` gives, from the cache where it was measured before.

    The cache is good for one processor and one version of torch, of llvmlite and of this package. What is measured
    while the machine has more to do than it has processors isn't kept.

    Args:
        kind: a record of plain values.
        about: all that it depends on, as values whose text says what they are.
        sound: whether one can be used; one from a file that can't is measured anew.
    """
    shape: TypeAdapter[T] = TypeAdapter(kind)
    key = hashlib.sha256(repr((kind.__name__, *_machine(), *about)).encode()).hexdigest()
    made: list[T] = []

    def pairs() -> list[tuple[str, str]]:
        made.append(measure())
        return [(repr(about), shape.dump_json(made[0]).decode())]

    found = kept_pairs(FOLDER, key, pairs, keep=not _busy())
    if made:
        return made[0]
    try:
        kept = shape.validate_json(found[0][1])
    except (ValidationError, IndexError):
        return measure()
    return kept if sound(kept) else measure()


def _busy() -> bool:
    """Whether times are those of a machine that does something else too."""
    try:
        return os.getloadavg()[0] > (os.cpu_count() or 1)
    except (AttributeError, OSError):  # not to be had on this system
        return False


def _machine() -> tuple[str, ...]:
    """What code runs, and on which processor."""
    return (__version__, host(), *(version_of(package) for package in ("torch", "llvmlite")))


def version_of(package: str) -> str:
    """Nothing where it isn't installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
