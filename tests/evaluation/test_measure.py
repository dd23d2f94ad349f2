from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from secateur.errors import ResourceError, SecateurError
from secateur.evaluation import measure as module
from secateur.evaluation import speed as speed_module
from secateur.evaluation.measure import measure, peak_resident_bytes, resident_bytes
from secateur.evaluation.speed import expected, speed
from secateur.report.terminal.listening import listening
from tests.small import save_tiny, tiny_llama


@pytest.mark.parametrize("context", [4, 32, 2048])
def test_sizes_follow_the_context(context: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_module, "SECONDS", 0.0)
    found = speed(tiny_llama(context=context))
    assert found.prompt_tokens + found.new_tokens <= context
    assert found.runs == speed_module.FEWEST_RUNS
    assert (found.prompt_tokens, found.new_tokens) == {4: (3, 1), 32: (24, 8), 2048: (512, 64)}[context]
    assert found.prefill_tokens_per_s > 0
    assert found.decode_tokens_per_s > 0


def test_how_many_runs_it_will_take() -> None:
    assert expected(0, 0.0) == 3
    assert expected(1, 10.0) == 3
    assert expected(1, 0.5) == 6
    assert expected(1, 0.01) == 25
    assert expected(7, 100.0) == 8


def test_medians_of_what_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([(9.0, 9.0), (1.0, 5.0), (2.0, 4.0), (8.0, 6.0)])  # the first one is to warm up
    monkeypatch.setattr(speed_module, "_run", lambda *args: next(times))
    monkeypatch.setattr(speed_module, "SECONDS", 0.0)
    found = speed(tiny_llama())
    assert found.prefill_tokens_per_s == 24 / 2.0
    assert found.decode_tokens_per_s == 8 / 5.0


def test_the_timed_decoding_is_greedy_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model, seen = tiny_llama(), []
    forward = model.forward

    def spy(*args: object, **kwargs: object) -> object:
        seen.append(kwargs["input_ids"])
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", spy)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        speed_module._run(model, ids, 6)
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
        )
    assert torch.cat(seen[:7], 1).tolist() == whole.tolist()


def test_a_fresh_process_measures_and_does_not_see_this_one(tmp_path: Path) -> None:
    ballast = bytearray(1_000_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    told: set[str] = set()
    with listening(lambda what, done, total: told.add(what)):
        found = measure(save_tiny(tmp_path / "model"), device="cpu")
    assert told == {"loading weights", "measuring speed"}
    assert resident_bytes() > 1_000_000_000
    del ballast
    assert 0 < found["memory_before_model_bytes"] < found["peak_memory_bytes"] < 1_000_000_000
    assert found["prompt_tokens"] == 24
    assert found["speed_runs"] >= speed_module.FEWEST_RUNS


def test_the_peak_is_not_below_what_is_resident() -> None:
    assert peak_resident_bytes() >= 0.95 * resident_bytes()


def test_an_error_over_there_is_told_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the other process does is done here, and what it says is repeated by one that knows nothing else."""
    order = {"path": str(tmp_path / "nope"), "device": "cpu", "dtype": "auto", "length": None, "threads": 1}
    monkeypatch.setattr(sys, "argv", ["child", json.dumps(order)])
    module.child()
    said = capsys.readouterr().out
    monkeypatch.setattr(module, "_CHILD", f"print('hello'); print({said!r})")
    with pytest.raises(SecateurError, match="no such folder") as caught:
        measure(tmp_path / "nope")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ResourceError, "killed by signal 9; it may lack"),
        ("print('hello'); 1 / 0", SecateurError, "failed: ZeroDivisionError: division by zero"),
        ("pass", SecateurError, "failed: it said nothing"),
    ],
)
def test_a_process_that_dies(code: str, error: type, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHILD", code)
    with pytest.raises(error, match=message):
        measure("model")
