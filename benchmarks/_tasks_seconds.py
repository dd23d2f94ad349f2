"""Seconds that a task takes here, in bare forward passes and in lm-eval, in turns, for `tasks.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

ROUNDS = 2


def seconds_of(loaded: Any, task: Any, theirs: Callable[[], dict[str, Any]]) -> dict[str, list[float]]:
    """By who takes them, of each round.

    Args:
        loaded: the model, as `secateur.evaluation.loading` opens it.
        theirs: runs lm-eval on this task alone; its figures by task, or nothing where it isn't installed. Its own
            seconds count, without those of starting it.
    """
    from secateur.evaluation.tasks.run import encoded, outcome_of

    groups = encoded(loaded, task)
    seconds: dict[str, list[float]] = {"secateur": [], "bare": [], "lm-eval": []}
    for _ in range(ROUNDS):
        seconds["secateur"].append(clocked(lambda: outcome_of(loaded, task)))
        seconds["bare"].append(clocked(lambda: bare(loaded.model, groups)))
        seconds["lm-eval"] += [figures["seconds"] for figures in theirs().values()]
    return seconds


def clocked(go: Callable[[], object]) -> float:
    begin = time.perf_counter()
    go()
    return time.perf_counter() - begin


def bare(model: Any, groups: list[Any]) -> None:
    """Nothing but forward passes in padded batches over the same rows, all logits computed."""
    import torch

    from secateur.evaluation.tasks.rows import padded, shared_row, together

    rows = [shared_row(group) for group in groups]
    with torch.no_grad():
        for batch in together(rows, 2048, 2**30):
            ids = padded([rows[index].ids for index in batch])
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
