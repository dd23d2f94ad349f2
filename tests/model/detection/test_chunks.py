"""What makes detection quick must not change what it sees: short chunks, columns followed together, small copies."""

from __future__ import annotations

import inspect
from contextlib import suppress

import pytest
import torch
from transformers import AutoConfig

from secateur.model.classes import stock_class
from secateur.model.detection import influence as module
from secateur.model.detection.chunks import LONGEST, short_chunks
from secateur.model.detection.copies import run, small_copy
from secateur.model.detection.influence import influence
from secateur.model.detection.trace import watch_layers
from secateur.model.detection.units import caller

TOKENS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, **TOKENS}
LINEAR = {"linear_num_heads": 2, "linear_head_dim": 8, "layer_types": ["linear_attention"]}


def kimi() -> torch.nn.Module:
    config = AutoConfig.for_model("kimi_linear", **SMALL, **LINEAR, mlp_layer_types=["dense"])
    torch.manual_seed(0)
    return stock_class(config)(config).eval().requires_grad_(False)


def lengths(model: torch.nn.Module) -> set[int]:
    """The chunks' default lengths beside a model's classes."""
    own = vars(inspect.getmodule(type(model))).values()
    found = [inspect.signature(f).parameters.get("chunk_size") for f in own if inspect.isfunction(f)]
    return {parameter.default for parameter in found if parameter is not None}


def test_short_chunks_compute_the_same_and_are_put_back() -> None:
    model, ids = kimi(), torch.arange(40).view(2, 20)
    before, whole = lengths(model), run(model, ids)
    assert max(before) > LONGEST
    with suppress(KeyError), short_chunks(model):
        assert lengths(model) == {LONGEST}
        torch.testing.assert_close(run(model, ids), whole, atol=1e-5, rtol=1e-4)
        raise KeyError  # whatever happens meanwhile
    assert lengths(model) == before


def test_columns_together_are_reached_by_what_reaches_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = kimi()
    (visit,) = watch_layers(model, "model.layers", torch.arange(8).view(1, 8))
    assert visit is not None
    layer, call = model.get_submodule("model.layers.0"), caller(visit)
    together = influence(layer, call, "self_attn.o_proj", ())
    monkeypatch.setattr(module, "BATCH_ENTRIES", 1)
    alone = influence(layer, call, "self_attn.o_proj", ())
    assert together.reach.keys() == alone.reach.keys() != set()
    assert all(torch.equal(together.reach[key], alone.reach[key]) for key in alone.reach)
    refused = torch.autograd.grad

    def no_batches(*given: object, is_grads_batched: bool = False, **more: object) -> object:
        if is_grads_batched:
            raise RuntimeError("no batching rule")
        return refused(*given, **more)

    monkeypatch.setattr(module, "BATCH_ENTRIES", 8_000_000)
    monkeypatch.setattr(torch.autograd, "grad", no_batches)
    one_by_one = influence(layer, call, "self_attn.o_proj", ())
    assert all(torch.equal(one_by_one.reach[key], alone.reach[key]) for key in alone.reach)


def test_experts_in_groups_have_a_small_copy() -> None:
    """As large as the class has them by default: 512 experts in eight groups, of which a copy has six in one."""
    config = AutoConfig.for_model("bailing_hybrid")
    assert (config.num_experts, config.num_expert_group) == (512, 8)
    copy = small_copy(config, 3)
    assert (copy.config.num_experts, copy.config.num_expert_group) == (6, 1)
