"""Tokens a second at batch 1: reading a prompt, and writing on with the KV cache."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.evaluation.windows import evaluation_length
from secateur.report.samples import per_second, spread
from secateur.system import accelerator

LONGEST_PROMPT, LONGEST_ANSWER = 512, 64  # tokens; shorter where the context is
FEWEST_RUNS, MOST_RUNS, SECONDS = 3, 25, 3.0  # runs go on until this many seconds, within these numbers

Times = tuple[float, float]  # seconds of a prefill and of the decoding after it


@dataclass(frozen=True)
class Speed:
    """Medians over `runs` runs after one to warm up, batch 1, greedy decoding; a range is the median's interval."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    prefill_range: tuple[float, float]
    decode_range: tuple[float, float]
    prompt_tokens: int
    new_tokens: int
    runs: int


class Trial:
    """A model with its prompt, warm, ready to be timed run by run.

    The prompt is random tokens, the same ones in every run. Prefill computes the logits of the last token only,
    where the model can be asked for that, as `generate` does.
    """

    @torch.no_grad()
    def __init__(self, model: Any) -> None:
        context = evaluation_length(model.config)
        self.answer = max(1, min(LONGEST_ANSWER, context // 4))
        self.prompt = max(1, min(LONGEST_PROMPT, context - self.answer))
        vocab = int(model.config.get_text_config().vocab_size)
        ids = torch.randint(vocab, (1, self.prompt), generator=torch.Generator().manual_seed(0))
        self._model, self._ids = model, ids.to(model.device)
        self.run()

    @torch.no_grad()
    def run(self) -> Times:
        """Seconds of one prefill and one decoding."""
        return _run(self._model, self._ids, self.answer)

    def speed(self, runs: Sequence[Times]) -> Speed:
        """What some runs say."""
        prefill, decode = (spread(times) for times in zip(*runs, strict=True))
        reads, writes = per_second(self.prompt, prefill), per_second(self.answer, decode)
        ranges = (reads.low, reads.high), (writes.low, writes.high)
        return Speed(reads.median, writes.median, *ranges, self.prompt, self.answer, len(runs))


def enough(runs: int, seconds: float) -> bool:
    """Whether so many runs in so many seconds are enough: quick models get more of them than slow ones."""
    return runs >= FEWEST_RUNS and (runs >= MOST_RUNS or seconds >= SECONDS)


def expected(runs: int, seconds: float) -> int:
    """How many runs it will take till there are enough, by those that are done."""
    return max(FEWEST_RUNS, runs + 1, min(MOST_RUNS, math.ceil(SECONDS * runs / seconds)) if runs else 0)


def speed(model: Any) -> Speed:
    """Time the prefill of one prompt and the greedy decoding after it."""
    trial, runs = Trial(model), list[Times]()
    begin = time.perf_counter()
    while not enough(len(runs), time.perf_counter() - begin):
        runs.append(trial.run())
    return trial.speed(runs)


def _run(model: Any, ids: Tensor, answer: int) -> Times:
    """Seconds of the prefill and of `answer` decoding steps."""
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    start = _now(model.device)
    out = model(input_ids=ids, use_cache=True, **last_only)
    token = out.logits[:, -1:].argmax(-1)
    middle = _now(model.device)
    for _ in range(answer):
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
    return middle - start, _now(model.device) - middle


def _now(device: torch.device) -> float:
    accelerator.synchronize(device)
    return time.perf_counter()
