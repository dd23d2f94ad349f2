"""Tokens a second at batch 1: reading a prompt, and writing on with the KV cache."""

from __future__ import annotations

import inspect
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.evaluation.windows import evaluation_length

LONGEST_PROMPT, LONGEST_ANSWER = 512, 64  # tokens; shorter where the context is
FEWEST_RUNS, MOST_RUNS, SECONDS = 3, 25, 3.0  # runs go on until this many seconds, within these numbers


@dataclass(frozen=True)
class Speed:
    """Medians over `runs` runs after one to warm up, batch 1, greedy decoding."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    prompt_tokens: int
    new_tokens: int
    runs: int


@torch.no_grad()
def speed(model: Any) -> Speed:
    """Time the prefill of one prompt and the greedy decoding after it.

    The prompt is random tokens, the same ones in every run. Prefill computes the logits of the last token only,
    where the model can be asked for that, as `generate` does. Quick models get more runs than slow ones.
    """
    context = evaluation_length(model.config)
    answer = max(1, min(LONGEST_ANSWER, context // 4))
    prompt = max(1, min(LONGEST_PROMPT, context - answer))
    vocab = int(model.config.get_text_config().vocab_size)
    ids = torch.randint(vocab, (1, prompt), generator=torch.Generator().manual_seed(0)).to(model.device)
    _run(model, ids, answer)
    runs: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while len(runs) < FEWEST_RUNS or (len(runs) < MOST_RUNS and time.perf_counter() - begin < SECONDS):
        runs.append(_run(model, ids, answer))
    prefill, decode = (statistics.median(times) for times in zip(*runs, strict=True))
    return Speed(prompt / prefill, answer / decode, prompt, answer, len(runs))


def _run(model: Any, ids: Tensor, answer: int) -> tuple[float, float]:
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
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
