"""Chunks of linear attention as short as the sequences of a copy: padding costs as much as what is looked at."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from secateur.model.detection.copies import SMALL

LONGEST = SMALL["chunk_size"]


@contextmanager
def short_chunks(model: Any) -> Iterator[None]:
    """Functions beside a model's classes that cut a sequence into chunks take shorter ones meanwhile, where no
    configuration says how long they are. They compute the same; the default is one of the library's own functions,
    so it is put back."""
    own = [inspect.unwrap(function) for function in _functions(model)]
    found = {function: function.__defaults__ for function in own if function.__defaults__}
    try:
        for function in found:
            function.__defaults__ = _shorter(function)
        yield
    finally:
        for function, defaults in found.items():
            function.__defaults__ = defaults


def _functions(model: Any) -> list[FunctionType]:
    modules = {type(module).__module__ for module in model.modules()}
    own = [value for name in sorted(modules) for value in vars(sys.modules[name]).values()]
    return [value for value in own if isinstance(value, FunctionType)]


def _shorter(function: Any) -> tuple[Any, ...]:
    code = function.__code__
    names = code.co_varnames[: code.co_argcount][-len(function.__defaults__) :]
    return tuple(
        LONGEST if name == "chunk_size" and type(value) is int and value > LONGEST else value
        for name, value in zip(names, function.__defaults__, strict=True)
    )
