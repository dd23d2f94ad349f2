"""What every method promises, whichever paper it comes from. A new entry of METHODS is held to it unasked."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from secateur import methods
from secateur.errors import InputError
from secateur.methods import GRADIENTS, METHODS, ROUTING, ExpertUnits, Method, Solution, Units, prune_weight
from secateur.numerics.linalg import quadratic_error
from secateur.numerics.moments import NEEDS, Moments
from secateur.numerics.patterns import Pattern, removed_count
from secateur.numerics.routing import Routing
from tests.cases import case
from tests.methods.activations import choices, experts_of, gathered, inputs, slopes, weights

FREE = Pattern.parse("free")
PATTERNS = [FREE, Pattern.parse("2:4"), Pattern.parse("4:8"), Pattern.parse("1:4")]
FOR_WEIGHTS = [m for m in METHODS.values() if "weights" in m.prunes]
FOR_UNITS = [m for m in METHODS.values() if "units" in m.prunes]
FOR_EXPERTS = [m for m in METHODS.values() if "experts" in m.prunes]
# The control looks at nothing, so nothing moves it.
INFORMED = [m for m in FOR_WEIGHTS if m.name != "random"]
# They look at what units say, not at who listens.
DEAF = {"random", "activation", "mi_pairs"}
MakeUnits = Callable[..., Units]


def named(value: object) -> str:
    return value.name if isinstance(value, Method) else str(value)


each_weight_method = pytest.mark.parametrize("method", FOR_WEIGHTS, ids=named)
each_unit_method = pytest.mark.parametrize("method", FOR_UNITS, ids=named)
each_expert_method = pytest.mark.parametrize("method", FOR_EXPERTS, ids=named)


def prune(method: Method, W: Tensor, moments: Moments, pattern: Pattern, sparsity: float) -> Solution:
    return prune_weight(method, W, moments, pattern, sparsity, slopes(W, moments.rms > 0))


def importance(method: Method, units: Units) -> Tensor:
    assert method.score_units is not None
    return method.score_units(units)


def test_entries_are_complete() -> None:
    for name, method in METHODS.items():
        with case(name):
            assert method.name == name
            complete(method)


def complete(method: Method) -> None:
    assert method.prunes
    assert method.needs <= NEEDS | GRADIENTS | ROUTING
    assert method.statistics | method.loss | method.routing == method.needs
    assert method.scope in {"row", "matrix"}
    assert method.score is None or method.solve is None
    assert method.title
    assert method.paper.startswith("https://")


@pytest.mark.parametrize("room", ["methods", "numerics"])
def test_imports_stay_pure(room: str) -> None:
    allowed = {
        "torch",
        "secateur",
        "__future__",
        "collections",
        "functools",
        "dataclasses",
        "importlib",
        "typing",
        "math",
        "re",
        "time",  # numerics.precision measures a device once
    }
    below = ("secateur.errors", "secateur.numerics", "secateur.methods")
    for path in (Path(methods.__file__).parents[1] / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "."]
            for name in names:
                assert name.split(".")[0] in allowed, f"{path.name} imports {name}"
                assert not name.startswith("secateur") or name.startswith(below), f"{path.name} imports {name}"
                assert room == "methods" or not name.startswith("secateur.methods"), f"{path.name}: {name}"


@each_weight_method
def test_weights_come_back_pruned_to_the_count(method: Method) -> None:
    for pattern, dtype in itertools.product(PATTERNS, (torch.float32, torch.bfloat16)):
        with case(pattern, dtype):
            W = weights(6, 160).to(dtype)
            moments, sparsity = gathered(inputs(400, 160)), 0.6
            before = W.clone()
            W.requires_grad_()  # as parameters do
            found = prune(method, W, moments, pattern, sparsity)
            again = prune(method, W, moments, pattern, sparsity)
            assert torch.equal(W, before)
            assert found.weight.dtype == torch.float32
            assert not found.weight.requires_grad
            assert found.weight.shape == found.mask.shape == W.shape
            assert found.mask.dtype == torch.bool
            assert torch.isfinite(found.weight).all()
            assert not found.weight[~found.mask].any()
            assert torch.equal(found.mask, again.mask)
            assert torch.equal(found.weight, again.weight)
            assert pattern.holds(found.mask)
            removed = int((~found.mask).sum())
            if pattern.sparsity is not None:
                assert removed == round(pattern.sparsity * W.numel())
            elif method.score is not None and method.scope == "row":
                assert ((~found.mask).sum(1) == removed_count(160, sparsity)).all()
            else:
                assert removed == removed_count(W.numel(), sparsity)


@each_weight_method
def test_a_pattern_that_does_not_fit_is_refused(method: Method) -> None:
    with pytest.raises(InputError, match="no multiple of 4"):
        prune(method, weights(4, 10), gathered(inputs(50, 10)), Pattern.parse("2:4"), 0.5)


@each_weight_method
def test_masks_do_not_depend_on_scale(method: Method) -> None:
    W, x = weights(8, 32), inputs(400, 32)
    found = prune(method, W, gathered(x), FREE, 0.5)
    scaled = prune(method, W * 4, gathered(x / 8), FREE, 0.5)  # powers of two: exact
    assert torch.equal(found.mask, scaled.mask)
    torch.testing.assert_close(found.weight * 4, scaled.weight)


@pytest.mark.parametrize("method", INFORMED, ids=named)
def test_outputs_may_be_permuted(method: Method) -> None:
    for pattern in PATTERNS:
        with case(pattern):
            W, moments, order = weights(8, 32), gathered(inputs(400, 32)), torch.randperm(8)
            found = prune(method, W, moments, pattern, 0.5)
            permuted = prune(method, W[order], moments, pattern, 0.5)
            assert torch.equal(found.mask[order], permuted.mask)
            torch.testing.assert_close(found.weight[order], permuted.weight)


@pytest.mark.parametrize("method", [m for m in INFORMED if m.score is not None], ids=named)
def test_scores_follow_permuted_inputs(method: Method) -> None:
    assert method.score is not None
    W, x, order = weights(8, 32), inputs(400, 32), torch.randperm(32)

    def score(W: Tensor, x: Tensor) -> Tensor:
        return method.score(W, gathered(x), slopes(W)) if method.loss else method.score(W, gathered(x))

    expected = score(W, x)[:, order]
    assert (expected >= 0).all()
    torch.testing.assert_close(score(W[:, order], x[:, order]), expected)


@pytest.mark.parametrize("method", [m for m in FOR_WEIGHTS if m.solve is not None], ids=named)
def test_solves_beat_masking_alone(method: Method) -> None:
    for pattern, tokens in itertools.product(PATTERNS, (2, 40, 400)):
        with case(pattern, tokens):
            W, moments = weights(8, 32), gathered(inputs(tokens, 32))
            found = prune(method, W, moments, pattern, 0.5)
            solved, _ = quadratic_error(W, found.weight, moments.gram)
            masked, _ = quadratic_error(W, W * found.mask, moments.gram)
            assert found.damping is not None
            assert solved <= masked


@each_weight_method
def test_dead_inputs_and_few_tokens_are_harmless(method: Method) -> None:
    for pattern, tokens in itertools.product(PATTERNS, (0, 1, 50)):
        with case(pattern, tokens):
            x = inputs(tokens, 32)
            x[:, [0, 7, 31]] = 0
            found = prune(method, weights(6, 32), gathered(x), pattern, 0.5)
            assert torch.isfinite(found.weight).all()
            assert pattern.holds(found.mask)
            assert int((~found.mask).sum()) == round((pattern.sparsity or 0.5) * 6 * 32)
            if method.needs and tokens and pattern.free:
                assert not found.mask[:, [0, 7, 31]].any()  # what reads a dead input goes first


@each_weight_method
def test_nothing_and_everything(method: Method) -> None:
    for sparsity in (0.0, 1.0):
        with case(sparsity):
            W = weights(4, 16)
            found = prune(method, W, gathered(inputs(60, 16)), FREE, sparsity)
            assert torch.equal(found.weight, W * (1 - sparsity))
            assert bool(found.mask.all()) == (sparsity == 0)


@each_unit_method
def test_units_are_scored(method: Method, make_units: MakeUnits) -> None:
    for width in (1, 4):
        with case(width):
            units = make_units(width=width)
            scores = importance(method, units)
            assert scores.shape == (units.count,)
            assert scores.dtype == torch.float64
            assert torch.isfinite(scores).all()
            assert (scores >= 0).all()
            assert torch.equal(scores, importance(method, units))


@pytest.mark.parametrize("method", [m for m in FOR_UNITS if m.name != "random"], ids=named)
def test_units_may_be_permuted(method: Method, make_units: MakeUnits) -> None:
    for width in (1, 4):
        with case(width):
            x = inputs(300, 8 * width)
            units, order = make_units(width=width, x=x), torch.randperm(8)
            inputs_order = (order[:, None] * width + torch.arange(width)).flatten()
            group = units.group[order]
            permuted = Units(
                units.consumer[:, inputs_order], gathered(x[:, inputs_order]), width, group, slopes(group)
            )
            torch.testing.assert_close(
                importance(method, permuted), importance(method, units)[order], rtol=1e-5, atol=0
            )


@each_unit_method
def test_unit_rankings_do_not_depend_on_scale(method: Method, make_units: MakeUnits) -> None:
    x = inputs(300, 8)
    units = make_units(x=x)
    scaled = Units(units.consumer * 4, gathered(x * 2), 1, units.group * 4, slopes(units.group * 4))
    assert torch.equal(importance(method, units).argsort(), importance(method, scaled).argsort())


@pytest.mark.parametrize("method", [m for m in FOR_UNITS if m.name not in DEAF], ids=named)
def test_units_that_do_nothing_go_first(method: Method, make_units: MakeUnits) -> None:
    units = make_units(width=2)
    consumer, group = units.consumer.clone(), units.group.clone()
    consumer[:, 6:8], group[3] = 0, 0
    idle = replace(units, consumer=consumer, group=group, gradients=slopes(group))
    assert int(importance(method, idle).argmin()) == 3


@each_unit_method
def test_units_with_few_tokens_are_finite(method: Method, make_units: MakeUnits) -> None:
    for tokens in (0, 1, 3):
        with case(tokens):
            x = inputs(tokens, 8)
            x[:, 2] = 0
            assert torch.isfinite(importance(method, make_units(x=x))).all()


def worth(method: Method, experts: ExpertUnits) -> Tensor:
    assert method.score_experts is not None
    return method.score_experts(experts)


@each_expert_method
def test_experts_are_scored(method: Method) -> None:
    for tokens in (0, 1, 200):
        with case(tokens):
            experts = experts_of(*choices(tokens, 6))
            before = experts.norms.clone()
            scores = worth(method, experts)
            assert scores.shape == (experts.count,)
            assert (scores.dtype, scores.device.type) == (torch.float64, "cpu")
            assert torch.isfinite(scores).all()
            assert (scores >= 0).all()
            assert torch.equal(scores, worth(method, experts))
            scores += 1  # a caller may do with them what it likes
            assert torch.equal(experts.norms, before)


@pytest.mark.parametrize("method", [m for m in FOR_EXPERTS if m.name != "random"], ids=named)
def test_experts_may_be_permuted(method: Method) -> None:
    found, order = choices(200, 6), torch.randperm(6)
    experts, permuted = experts_of(*found), experts_of(*(part[:, order] for part in found))
    permuted = replace(permuted, norms=experts.norms[order])
    torch.testing.assert_close(worth(method, permuted), worth(method, experts)[order])


@each_expert_method
def test_expert_rankings_do_not_depend_on_scale(method: Method) -> None:
    chosen, gates, norms = choices(200, 6)
    experts, scaled = experts_of(chosen, gates, norms), experts_of(chosen, gates, norms * 4)
    scaled = replace(scaled, norms=experts.norms * 4)
    assert torch.equal(worth(method, experts).argsort(), worth(method, scaled).argsort())


@pytest.mark.parametrize("method", [m for m in FOR_EXPERTS if m.routing], ids=named)
def test_experts_that_no_token_is_routed_to_go_first(method: Method) -> None:
    chosen, gates, norms = choices(200, 6)
    chosen[:, 5] = False
    scores = worth(method, experts_of(chosen, gates, norms))
    assert float(scores[5]) == 0
    assert (scores[:5] > 0).all()


@each_expert_method
def test_what_an_expert_method_needs_is_all_it_reads(method: Method) -> None:
    """A run gathers no more than that."""
    full = experts_of(*choices(50, 6))
    bare = Routing(6, method.routing)
    for mine, theirs in zip(bare.tensors(), full.routing.tensors(), strict=False):
        mine += theirs
    assert torch.equal(worth(method, replace(full, routing=bare)), worth(method, full))
