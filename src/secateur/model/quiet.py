"""Loading without what `transformers` would draw and print: whoever loads checks, and tells in one line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as hf_logging

from secateur.report.terminal.listening import telling


@contextmanager
def quiet_loading() -> Iterator[None]:
    shown, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        with told_loading():
            yield
    finally:
        hf_logging.set_verbosity(level)
        if shown:
            hf_logging.enable_progress_bar()


@contextmanager
def told_loading() -> Iterator[None]:
    """Tells what `transformers` would draw a bar of: how many of a model's tensors are there."""
    hook = getattr(hf_logging, "set_tqdm_hook", None)
    if hook is None:  # older versions
        yield
        return
    before = hook(_told)
    try:
        yield
    finally:
        hook(before)


def _told(bar: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """A bar as it was asked for, which tells how far it is where it's of something that can be counted."""
    parts = args[0] if args else options.get("iterable")
    if not isinstance(parts, Collection):
        return bar(*args, **options)
    what = str(options.get("desc") or "loading").lower()
    return bar(telling(what, parts, len(parts)), *args[1:], **{**options, "total": len(parts)})
