"""A teacher as int8: what it holds, what it says against a slow one in double precision, what is learned from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import secateur
from secateur.errors import InputError, ResourceError
from secateur.evaluation.loading import load
from secateur.model.checkpoint import Checkpoint
from secateur.numerics.divergence import forward_kl
from secateur.recovery import forecast, session, task
from secateur.recovery.int8 import load_int8
from tests.model import tiny

CPU = torch.device("cpu")
KL = {"stories260K": 0.001, "stories3M-fp16": 0.002}  # nats a token; measured 0.0006 and 0.0012 on all of eval.jsonl


def opened(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_int8(Checkpoint.open(folder), CPU, dtype)


def held(model: Any) -> int:
    """Bytes of all that a model has in memory, shared tensors once."""
    return sum({t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}.values())


def stand_for(row: Iterable[float]) -> list[float]:
    """What int8 multiples of one scale stand for, in double precision; which multiples, fp32 decides."""
    singles = [np.float32(x) for x in row]
    scale = max(map(abs, singles)) / np.float32(127)
    return [round(x / scale) * float(scale) for x in singles]


def rounded(W: Tensor) -> Tensor:
    """The rows of (..., rows, columns), each rounded by itself."""
    rows = [stand_for(row) for row in W.double().reshape(-1, W.shape[-1]).tolist()]
    return torch.tensor(rows, dtype=torch.float64).view(W.shape)


@pytest.mark.parametrize("case", sorted(set(tiny.CASES) - {"bert"}))
def test_logits_of_every_family(case: str, tmp_path: Path) -> None:
    """Against the dense model with each matrix rounded by plain loops, computed in double precision."""
    tiny.save(case, tmp_path / "model")
    found = opened(tmp_path / "model")(input_ids=tiny.tokens()).logits
    reference = tiny.build(case).double()
    reference.set_experts_implementation("eager")
    plain = reference(input_ids=tiny.tokens()).logits
    count = 0
    for name, parameter in reference.named_parameters():
        if parameter.dim() < 2 or name.endswith("mlp.gate.weight"):
            continue
        turned = "gpt2" in case and ".h." in name  # stored as (in, out)
        parameter.data = rounded(parameter.T).T.contiguous() if turned else rounded(parameter)
        count += 1
    assert count > 3 * tiny.LAYERS
    expected = reference(input_ids=tiny.tokens()).logits
    # fp32 is off by far less than the rounding itself is.
    assert (found - expected).norm() < 0.01 * (plain - expected).norm()


@pytest.mark.parametrize("name", ["stories260K", "stories3M-fp16"])
def test_a_quarter_of_the_memory_and_nearly_the_same_predictions(name: str, shared: Path) -> None:
    folder = shared / "models" / name
    full, small = load(folder, "cpu", "float32"), opened(folder)
    assert held(small) < 0.27 * held(full.model)
    texts = (shared / "data" / "tinystories" / "eval.jsonl").read_text().splitlines()[:10]
    total = count = 0.0
    for line in texts:
        ids = torch.tensor([full.tokenizer(json.loads(line)["text"]).input_ids[:256]])  # type: ignore[misc]
        own, other = (model(input_ids=ids).logits[0] for model in (small, full.model))
        total, count = total + float(forward_kl(own, other)), count + len(own)
    assert 1e-5 < total / count < KL[name]


def test_a_layer_at_a_time_is_at_full_width(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(shared / "models" / "stories3M-fp16")
    largest = max(sum(checkpoint.sizes[key] for key in part) for part in checkpoint.by_layer.values())
    seen: list[int] = []
    honest = Checkpoint.put_into

    def watched(self: Checkpoint, model: Any, tensors: Any) -> None:
        honest(self, model, tensors)
        wide = {p.data_ptr(): p.numel() for p in model.parameters() if p.is_floating_point() and not p.is_meta}
        seen.append(sum(wide.values()))

    monkeypatch.setattr(Checkpoint, "put_into", watched)
    load_int8(checkpoint, CPU, torch.float32)
    assert len(seen) == 1 + checkpoint.layers
    assert max(seen) < 1.1 * largest < 0.5 * checkpoint.parameters  # scales and norms on top


def test_tied_embeddings_are_held_once(shared: Path) -> None:
    model = opened(shared / "models" / "stories260K", torch.bfloat16)
    head, embedding = (module.parametrizations.weight for module in (model.lm_head, model.model.embed_tokens))
    assert head.original0 is embedding.original0
    assert head.original0.dtype == torch.int8
    assert model.lm_head.weight.dtype == model.model.norm.weight.dtype == torch.bfloat16


@pytest.fixture
def recover(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A few steps."""

    def call(folder: Path, text: Path, out: str, **values: Any) -> dict[str, Any]:
        told = secateur.make_recovery({"data": str(text), "learning_rate": 2e-3, **values})
        how: dict[str, Any] = {"evaluate": "none", "speed": False, "dtype": "float32", "quiet": True}
        report = secateur.recover(folder, tmp_path / out, told, **how)
        found: dict[str, Any] = report["recovery"]
        return found

    return call


@pytest.fixture(scope="module")
def half(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K, half of its channels gone."""
    folder = tmp_path_factory.mktemp("half") / "model"
    values = {"model": str(shared / "models" / "stories260K"), "sites": "channel", "sparsity": 0.5, "samples": 16}
    values |= {"calibrate": str(shared / "data" / "tinystories" / "calibrate.jsonl"), "method": "magnitude"}
    secateur.prune(secateur.make_recipe({**values, "evaluate": "none", "speed": False}), folder, quiet=True)
    return folder


def test_it_teaches_as_the_full_one_does(half: Path, shared: Path, recover: Callable[..., dict[str, Any]]) -> None:
    text = shared / "data" / "tinystories" / "calibrate.jsonl"
    told = {"steps": 16, "batch": 4, "length": 64, "evaluate_every": 8}
    full = recover(half, text, "full", **told)
    small = recover(half, text, "int8", **told, teacher_dtype="int8")
    assert (full["teacher"]["dtype"], small["teacher"]["dtype"]) == ("float32", "int8")
    assert full["held_out_after"] < full["held_out_before"] - 0.3
    assert small["held_out_after"] == pytest.approx(full["held_out_after"], abs=0.005)
    assert small["held_out_after"] != full["held_out_after"]


def test_a_cache_is_of_one_precision(
    source: Path, pruned: dict[str, Path], recover: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    cache, text = tmp_path / "teacher.safetensors", source / "text.jsonl"
    told = {"steps": 4, "batch": 4, "length": 32, "top_k": 8, "teacher_cache": str(cache)}
    recover(pruned["free"], text, "made", **told, teacher_dtype="int8")
    begun = cache.read_bytes()
    recover(pruned["free"], text, "again", **told, teacher_dtype="int8")
    with pytest.raises(InputError, match="was made by a teacher in int8, not float32; use --teacher-dtype int8"):
        recover(pruned["free"], text, "other", **told)
    assert cache.read_bytes() == begun
    assert not (tmp_path / "other").exists()


def test_what_does_not_fit(
    source: Path,
    pruned: dict[str, Path],
    recover: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    text, cache = source / "text.jsonl", str(tmp_path / "teacher.safetensors")
    told = {"steps": 4, "batch": 4, "length": 32}
    # As if there were room for a teacher of a byte an entry, and for no wider one.
    asked: list[int] = []

    def bytes_of(*counts: int) -> int:
        asked.append(counts[-1])
        return forecast.weights_bytes(*counts) if counts[-1] == 1 else 1 << 60

    monkeypatch.setattr(task, "weights_bytes", bytes_of)
    with pytest.raises(ResourceError, match="or --teacher-dtype int8 or --top-k"):
        recover(pruned["free"], text, "full", **told, loss="logits")
    recover(pruned["free"], text, "int8", **told, teacher_dtype="int8")
    assert asked == [4, 1]
    monkeypatch.setattr(session, "fits_in_memory", lambda *_: False)
    with pytest.raises(InputError, match="leave --teacher-dtype out"):
        recover(pruned["free"], text, "cached", **told, top_k=4, teacher_cache=cache, teacher_dtype="int8")
    assert not (tmp_path / "cached").exists()
