"""Zeros under training: bit by bit, in every way that a weight is stored."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from secateur.config.training import make_recovery
from secateur.errors import SecateurError
from secateur.model.architectures import family_of
from secateur.model.linears import linears_of
from secateur.numerics.patterns import Pattern
from secateur.recovery import adapters, masks
from secateur.recovery.muon import MuonAndAdamW
from tests.model import tiny

CASES = ["llama", "gpt2", "mixtral"]


def sparse(case: str) -> Any:
    """A tiny model with two of four weights zero in every prunable matrix."""
    model = copy.deepcopy(tiny.build(case)).float().train().requires_grad_(True)
    torch.manual_seed(3)
    family = family_of(model.config)
    for layer in model.get_submodule(family.layers).children():
        for linear in linears_of(layer, family):
            scores = torch.rand(linear.shape)
            linear.weight = linear.weight * Pattern.parse("2:4").mask(scores)
    return model


def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    ids = tiny.tokens()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def adamw(model: Any, found: dict[str, torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def muon(model: Any, found: dict[str, torch.Tensor]) -> torch.optim.Optimizer:
    return MuonAndAdamW(model, family_of(model.config).layers, found, 1e-2, 0.1)


@pytest.mark.parametrize("make", [adamw, muon])
@pytest.mark.parametrize("case", CASES)
def test_full_training_keeps_every_zero(case: str, make: Callable[..., torch.optim.Optimizer]) -> None:
    model = sparse(case)
    classes = [type(module) for module in model.modules()]
    found = masks.find_masks(model, family_of(model.config))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    masks.hold(model, found)
    optimizer = make(model, found)
    for _ in range(3):
        step(model, optimizer)
    assert masks.check(model, found) == sum(int((~mask).sum()) for mask in found.values())
    for name, mask in found.items():
        after = model.get_parameter(name)
        assert torch.equal(after != 0, mask)
        moved = (after != before[name])[mask].float().mean()
        assert float(moved) > (0.3 if "experts" in name else 0.9)  # a token meets two of the experts
    masks.release(model, found)
    assert [type(module) for module in model.modules()] == classes
    assert set(dict(model.named_buffers())) == set(dict(tiny.build(case).named_buffers()))


@pytest.mark.parametrize("case", CASES)
def test_a_held_model_computes_the_same(case: str) -> None:
    model = sparse(case).eval()
    before = tiny.logits(model, tiny.tokens())
    masks.hold(model, masks.find_masks(model, family_of(model.config)))
    torch.testing.assert_close(tiny.logits(model, tiny.tokens()), before, rtol=0, atol=0)


def test_gradients_that_remain_are_those_of_plain_training() -> None:
    plain, held = sparse("llama"), sparse("llama")
    found = masks.find_masks(held, family_of(held.config))
    masks.hold(held, found)
    ids = tiny.tokens()
    for model in (plain, held):
        model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in plain.named_parameters():
        expected = parameter.grad * found[name] if name in found else parameter.grad
        torch.testing.assert_close(held.get_parameter(name).grad, expected)


def test_dense_weights_are_left_alone() -> None:
    model = copy.deepcopy(tiny.build("llama"))
    name = f"{family_of(model.config).layers}.0.mlp.down_proj.weight"
    model.get_parameter(name).data[0, 0] = 0  # one by chance
    assert masks.find_masks(model, family_of(model.config)) == {}


def test_a_filled_zero_is_an_error() -> None:
    model = sparse("llama")
    found = masks.find_masks(model, family_of(model.config))
    name = next(iter(found))
    model.get_parameter(name).data[~found[name]] = 1e-30
    with pytest.raises(SecateurError, match="were filled"):
        masks.check(model, found)


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_the_masked_product_is_what_it_says(case: str) -> None:
    """In training and after merging: W + mask * (scale B A), by hand in double precision."""
    model = sparse(case).eval()
    family = family_of(model.config)
    found = masks.find_masks(model, family)
    weights = {name: model.get_parameter(name).detach().clone() for name in found}
    adapted = adapters.add(model, family, make_recovery({"how": "lora", "rank": 3, "alpha": 6.0}), found)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1)
    expected = {}
    for name, mask in found.items():
        module = adapted.get_submodule(f"base_model.model.{name.removesuffix('.weight')}")
        B, A = (getattr(module, f"lora_{part}")["default"].weight.detach().double() for part in "BA")
        transposed = isinstance(module.get_base_layer(), Conv1D)
        product = torch.zeros(B.shape[0], A.shape[1], dtype=torch.float64)
        for i in range(product.shape[0]):
            for j in range(product.shape[1]):
                product[i, j] = 2.0 * sum(B[i, r] * A[r, j] for r in range(3))
        product = product.T if transposed else product
        expected[name] = weights[name].double() + product * mask
        x = torch.randn(2, 5, expected[name].shape[0 if transposed else 1])
        W = expected[name].T if transposed else expected[name]
        bias = module.get_base_layer().bias
        by_hand = nn.functional.linear(x.double(), W, None if bias is None else bias.double())
        torch.testing.assert_close(module(x).double(), by_hand, rtol=1e-4, atol=1e-5)
        if len(expected) == 8:
            break  # a double loop takes its time
    trained = tiny.logits(adapted, tiny.tokens())
    merged = adapters.merge(adapted, found)
    for name, value in expected.items():
        torch.testing.assert_close(merged.get_parameter(name).double(), value, rtol=1e-5, atol=1e-6)
    for name, mask in found.items():
        assert torch.equal(merged.get_parameter(name) != 0, mask)
    torch.testing.assert_close(tiny.logits(merged, tiny.tokens()), trained, rtol=1e-4, atol=1e-5)
