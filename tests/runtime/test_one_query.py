"""Attention of one token in bf16: against fp64 sums, against transformers' own, and in a loaded model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, FalconConfig, FalconForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import secateur
from secateur.errors import InputError
from secateur.runtime import one_query
from secateur.runtime.one_query import NAME, attend, speed_up_attention
from tests.runtime.pruned import prune_copy
from tests.small import save_tiny

NOTHING = nn.Module()


def states(heads: int, shared: int, cached: int, batch: int = 2, tokens: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(heads * cached)
    query = torch.randn(batch, heads, tokens, 16).bfloat16()
    key, value = (torch.randn(batch, shared, cached, 16).bfloat16() for _ in range(2))
    return query, key, value


def slowly(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Head by head and key by key, in fp64."""
    batch, heads, _, size = query.shape
    out = torch.zeros(batch, 1, heads, size, dtype=torch.float64)
    q, k, v = query.double(), key.double(), value.double()
    for b in range(batch):
        for h in range(heads):
            of = h // (heads // key.shape[1])
            seen = [at for at in range(key.shape[2]) if allowed[b, h, 0, at]]
            weight = [math.exp(scale * float(q[b, h, 0] @ k[b, of, at])) for at in seen]
            for at, w in zip(seen, weight, strict=True):
                out[b, 0, h] += w / sum(weight) * v[b, of, at]
    return out


@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize("mask", ["none", "of the batch", "of the heads"])
def test_against_fp64(heads: int, shared: int, mask: str) -> None:
    query, key, value = states(heads, shared, 9)
    given = None
    if mask != "none":
        given = torch.rand(2, 1 if mask == "of the batch" else heads, 1, 9) > 0.4
        given[..., 0] = True
    allowed = torch.ones(2, heads, 1, 9, dtype=torch.bool) if given is None else given.expand(2, heads, 1, 9)
    y, weights = attend(NOTHING, query, key, value, given, scaling=0.3, dropout=0.0, sliding_window=None)
    assert (weights, y.dtype, y.shape) == (None, torch.bfloat16, (2, 1, heads, 16))
    torch.testing.assert_close(y.double(), slowly(query, key, value, allowed, 0.3), atol=0.02, rtol=0.02)


def test_a_query_never_goes_to_torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def watched(query: Tensor, *given: object, **named: object) -> Tensor:
        seen.append(query.shape[2])
        return plain(query, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    for heads, shared in ((6, 2), (4, 4)):
        attend(NOTHING, *states(heads, shared, 9), None, scaling=0.25)
    assert seen == [3, 2]


@pytest.mark.parametrize("case", ["tokens", "float32", "position_bias", "dropout"])
def test_what_it_leaves_to_transformers(case: str) -> None:
    tokens = 3 if case == "tokens" else 1
    query, key, value = states(4, 4, 9, tokens=tokens)
    if case == "float32":
        query, key, value = query.float(), key.float(), value.float()
    named: dict[str, object] = {"scaling": 0.25}
    if case == "position_bias":
        named["position_bias"] = torch.randn(1, 4, 1, 9).bfloat16()
    if case == "dropout":
        named["dropout"] = 0.5
    torch.manual_seed(0)
    ours = attend(NOTHING, query, key, value, None, **named)[0]
    torch.manual_seed(0)
    assert ours.equal(sdpa_attention_forward(NOTHING, query, key, value, None, **named)[0])


def test_continuous_batching_is_refused() -> None:
    """It would leave the mask out, and its sequences would see each other."""
    with pytest.raises(InputError, match="set_attn_implementation"):
        attend(NOTHING, *states(4, 4, 9), None, scaling=0.25, cache=object())


def decoded(model: Any, ids: Tensor, there: Tensor) -> Tensor:
    """Logits of the last token, read after the others."""
    cache = model(ids[:, :-1], attention_mask=there[:, :-1], use_cache=True).past_key_values
    return model(ids[:, -1:], attention_mask=there, past_key_values=cache).logits.float()


def test_a_compressed_model_attends_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the dense model by torch alone, with padding on the left; what it saves says nothing of it."""
    pruned = prune_copy(save_tiny(tmp_path / "tiny"), tmp_path / "pruned")
    secateur.compress(pruned, tmp_path / "compressed")
    plain = secateur.load(tmp_path / "compressed", dtype="bfloat16", runtime="dense")
    model = secateur.load(tmp_path / "compressed", dtype="bfloat16", runtime="compressed")
    assert (plain.config._attn_implementation, model.config._attn_implementation) == ("sdpa", NAME)
    called: list[int] = []
    fits = one_query._fits

    def watched(query: Tensor, *given: Any) -> bool:
        called.append(query.shape[2])
        return fits(query, *given)

    monkeypatch.setattr(one_query, "_fits", watched)
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    there = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    with torch.inference_mode():
        found = [decoded(m, ids, there) for m in (model, plain)]
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 0.02
    assert 1 in called
    model.save_pretrained(tmp_path / "saved")
    assert NAME not in (tmp_path / "saved" / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").config._attn_implementation == "sdpa"


def test_a_class_that_asks_for_sdpa_by_name_keeps_it() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    falcon = FalconForCausalLM(FalconConfig(**sizes))
    llama = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=32))
    assert [speed_up_attention(model) for model in (falcon, llama)] == [False, True]
    assert falcon.config._attn_implementation == "sdpa"
    llama.set_attn_implementation("eager")
    assert not speed_up_attention(llama), "what was asked for stays"
