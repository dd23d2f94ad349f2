"""One form of a model, measured in a process of its own: what another form left behind can't help or hurt it."""

from __future__ import annotations

import inspect
import json
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import psutil
import torch
from torch import Tensor

from secateur.benchmarking.energy import Energy
from secateur.errors import SecateurError
from secateur.evaluation.loading import load
from secateur.evaluation.measure import peak_resident_bytes, resident_bytes
from secateur.evaluation.windows import context_length
from secateur.report.samples import spread
from secateur.report.schema.bench import (
    BenchAnswer,
    BenchOrder,
    DecodeFigures,
    LoadedForm,
    MeasuredRow,
    SkippedRow,
)
from secateur.runtime.linear import resident_weights

MARK = "secateur-bench:"  # before each line of the answer, as libraries may print what they like
WARM, SEGMENTS = 4, 3


def child() -> None:
    """What the fresh process does: loads what its argument says, then goes on by one piece of work for each line that
    it reads, and answers with one line of JSON, so that several forms can take turns."""
    order = json.loads(sys.argv[1])
    try:
        with torch.inference_mode():
            work = _work(order)
            tell(next(work))
            for _ in sys.stdin:
                found = next(work, None)
                if found is None:
                    break
                tell(found)
    except SecateurError as error:
        tell({"error": str(error)})


def tell(found: BenchAnswer) -> None:
    print(MARK + json.dumps(found), flush=True)


def _work(order: BenchOrder) -> Iterator[BenchAnswer]:
    """First the form, loaded; then for each batch and context `SEGMENTS` + 1 answers, the last one the row; then the
    peak."""
    torch.set_num_threads(order["threads"])
    before = resident_bytes()
    begin = time.perf_counter()
    model = load(order["path"], "cpu", order["dtype"], runtime=order["runtime"]).model
    found: LoadedForm = {"load_seconds": time.perf_counter() - begin}
    found["resident_weight_bytes"] = resident_weights(model)
    found["memory_before_model_bytes"] = before
    found["runtime"] = getattr(model, "secateur_runtime", None)
    energy = Energy()
    found["no_energy"] = energy.why_not
    yield {"form": found}
    pace: float | None = None
    for batch in order["batches"]:
        for context in order["contexts"]:
            row, pace = yield from _row(model, order, batch, context, pace, energy)
            yield {"row": row}
    yield {"form": {"peak_memory_bytes": peak_resident_bytes()}}


def _row(
    model: Any, order: BenchOrder, batch: int, context: int, pace: float | None, energy: Energy
) -> Generator[BenchAnswer, None, tuple[MeasuredRow | SkippedRow, float | None]]:
    """One batch and context: the figures, or why they're left out; and the seconds per token of its prefill."""
    why = _left_out(model, order, batch, context, pace)
    if why is not None:
        for _ in range(SEGMENTS):
            yield {}  # the others' turns
        return {"batch": batch, "context": context, "skipped": why}, pace
    vocabulary = int(model.config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (batch, context), generator=generator)
    first = spread(_prefill(model, ids, order["limit"]))
    steps = yield from _decode(model, ids, order, energy)
    return {
        "batch": batch,
        "context": context,
        "first_token_seconds": first.median,
        "first_token_range": [first.low, first.high],
        "prefill_tokens_per_s": batch * context / first.median,
        "decode_tokens_per_s": batch / steps["seconds_a_step"],
        "decode_range": [batch / steps["slowest_segment"], batch / steps["fastest_segment"]],
        **steps,
    }, first.median / (batch * context)


def _left_out(model: Any, order: BenchOrder, batch: int, context: int, pace: float | None) -> str | None:
    """Why a batch and context isn't measured; None if it is."""
    new = WARM + SEGMENTS * order["tokens"]
    longest = context_length(model.config)
    if longest is not None and context + new > longest:
        return f"{context} + {new} tokens are more than the model's context of {longest}"
    need = _cache_bytes(model, batch, context + new)
    if need > 0.8 * psutil.virtual_memory().available:
        return f"its KV cache needs {need / 1e9:.1f} GB, which this machine doesn't have free"
    if pace is not None and pace * batch * context > order["limit"]:
        return f"its prefill would take about {pace * batch * context:.0f} s"
    return None


def _cache_bytes(model: Any, batch: int, length: int) -> int:
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * batch * length * model.dtype.itemsize)


def _prefill(model: Any, ids: Tensor, limit: float) -> list[float]:
    """Seconds to the first token: three runs after one to warm up, where that doesn't take long, else that one."""
    times: list[float] = []
    while not times or (len(times) < 4 and times[0] < limit / 10):
        begin = time.perf_counter()
        _step(model, ids, _dynamic(model), last=True)
        times.append(time.perf_counter() - begin)
    return times[1:] or times


def _decode(
    model: Any, ids: Tensor, order: BenchOrder, energy: Energy
) -> Generator[BenchAnswer, None, DecodeFigures]:
    """Greedy decoding after a prefill, in segments. The first steps, which compile, aren't counted."""
    form, tokens = order["form"], order["tokens"]
    call, cache = model, _dynamic(model)
    if form != "eager":
        call, cache = _compiled(model, form), _static(model, ids.shape[1] + WARM + SEGMENTS * tokens)
    token = _step(model, ids, cache, last=True)
    begin = time.perf_counter()
    for _ in range(WARM - 1):
        token = _step(call, token, cache)
    warm = time.perf_counter() - begin
    begin = time.perf_counter()
    token = _step(call, token, cache)
    tokens = max(4, min(tokens, int(order["limit"] / SEGMENTS / (time.perf_counter() - begin))))
    seconds, joules = [], []
    for _ in range(SEGMENTS):
        yield {}
        counters, begin = energy.read(), time.perf_counter()
        for _ in range(tokens):
            token = _step(call, token, cache)
        seconds.append((time.perf_counter() - begin) / tokens)
        spent = energy.joules(counters, energy.read())
        joules += [] if spent is None else [spent / (tokens * ids.shape[0])]
    return {
        "seconds_a_step": statistics.median(seconds),
        "slowest_segment": max(seconds),
        "fastest_segment": min(seconds),
        "new_tokens": SEGMENTS * tokens,
        "joules_per_token": statistics.median(joules) if joules else None,
        "warm_up_seconds": warm,
    }


def _step(call: Callable[..., Any], ids: Tensor, cache: Any, last: bool = False) -> Tensor:
    """The likeliest next tokens (batch, 1)."""
    owner = getattr(call, "forward", call)
    kept = {"logits_to_keep": 1} if last and "logits_to_keep" in inspect.signature(owner).parameters else {}
    return call(input_ids=ids, past_key_values=cache, use_cache=True, **kept).logits[:, -1:].argmax(-1)


def _dynamic(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def _static(model: Any, length: int) -> Any:
    from transformers import StaticCache

    return StaticCache(config=model.config, max_cache_len=length)


def _compiled(model: Any, form: str) -> Callable[..., Any]:
    """The model's forward, compiled anew: for the shapes of the row at hand and nothing else."""
    import torch._inductor.config as inductor

    torch.compiler.reset()
    inductor.freezing = form == "frozen"
    return torch.compile(model.forward, dynamic=False)
