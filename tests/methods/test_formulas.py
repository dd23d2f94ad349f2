"""Each method against its slow twin in `references`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import references
import torch
from activations import gathered, inputs, weights

from secateur.methods import METHODS, Units, alps, flap, magnitude, obs, sparsegpt, wanda
from secateur.methods.block_influence import BlockInfluence, block_influence
from secateur.numerics.linalg import quadratic_error
from secateur.numerics.moments import Moments
from secateur.numerics.patterns import Pattern

FREE = Pattern.parse("free")


def test_magnitude(make_units: Callable[..., Units]) -> None:
    W = weights(5, 9)
    torch.testing.assert_close(magnitude.score(W), references.magnitude(W))
    units = make_units()
    expected = [sum(float(p) ** 2 for p in row) ** 0.5 for row in units.group]
    assert magnitude.score_units(units).tolist() == pytest.approx(expected, rel=1e-6)


def test_wanda() -> None:
    W, x = weights(5, 8), inputs(30, 8)
    torch.testing.assert_close(wanda.score(W, gathered(x)) * 30**0.5, references.wanda(W, x))
    for width in (1, 4):
        found = wanda.score_units(Units(W, gathered(x), width, W.T)) * 30**0.5
        assert found.tolist() == pytest.approx(references.wanda_units(W, x, width), rel=1e-5)


@pytest.mark.parametrize("width", [1, 4])
def test_flap(width: int) -> None:
    W, x = weights(5, 8), inputs(30, 8) + 3
    found = flap.score_units(Units(W, gathered(x), width, W.T))
    assert found.tolist() == pytest.approx(references.flap_units(W, x, width), rel=1e-5)


@pytest.mark.parametrize("pattern", ["free", "2:4", "4:8"])
@pytest.mark.parametrize("sparsity", [0.3, 0.7])
@pytest.mark.parametrize("block", [8, 24])
def test_sparsegpt(pattern: str, sparsity: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsegpt, "STRIPE", 4)
    W, x, shape = weights(7, 40), inputs(90, 40), Pattern.parse(pattern)
    x[:, 13] = 0
    found = sparsegpt.solve(W, gathered(x), shape, sparsity, damping=0.02, block=block)
    n_of_m = None if shape.kept is None or shape.of is None else (shape.kept, shape.of)
    weight, mask = references.sparsegpt(W, x, sparsity, n_of_m, block, 0.02)
    assert torch.equal(found.mask, mask)
    torch.testing.assert_close(found.weight.double(), weight, rtol=1e-3, atol=1e-4)
    assert found.damping == 0.02


def of_pattern(shape: Pattern) -> tuple[int, int] | None:
    return None if shape.kept is None or shape.of is None else (shape.kept, shape.of)


@pytest.mark.parametrize("pattern", ["free", "2:4", "4:8"])
@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_alps_settles_on_the_mask_of_the_plain_iteration(pattern: str, sparsity: float) -> None:
    W, x, shape = weights(7, 16), inputs(90, 16), Pattern.parse(pattern)
    H = references.damped_second_moments(x, alps.DAMPING)
    scale = H.diagonal().rsqrt()
    G, start = H * scale[:, None] * scale, W.double() / scale
    _, found = alps.admm(start, *torch.linalg.eigh(G), shape, sparsity)
    expected = references.alps_mask(start, G, sparsity, of_pattern(shape), alps.STEPS)
    assert torch.equal(found, expected)
    # And the method is that mask with the weights that are best on it.
    solved = alps.solve(W, gathered(x), shape, sparsity)
    assert torch.equal(solved.mask, expected)
    best = references.masked_error(W, H, expected)
    assert quadratic_error(W, solved.weight, H.float())[0] == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("pattern", ["free", "2:4"])
@pytest.mark.parametrize("seed", range(3))
def test_alps_is_no_worse_than_sparsegpt(pattern: str, seed: int) -> None:
    """On the quadratic that both minimise; the margin is for the noise of fp32 only."""
    shape = Pattern.parse(pattern)
    W, moments = weights(24, 48, seed), gathered(inputs(200, 48, seed + 10))
    for sparsity in (0.3, 0.5, 0.7, 0.9):
        errors = [
            quadratic_error(W, METHODS[name].solve(W, moments, shape, sparsity).weight, moments.gram)[0]
            for name in ("alps", "sparsegpt")
        ]
        assert errors[0] <= errors[1] * 1.001, (sparsity, errors)


def test_alps_shares_the_spectrum_between_readers_of_one_input(monkeypatch: pytest.MonkeyPatch) -> None:
    moments, calls, eigh = gathered(inputs(90, 16)), [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda G: calls.append(G) or eigh(G))
    for seed in (1, 2, 3):
        alps.solve(weights(6, 16, seed), moments, FREE, 0.5)
    assert len(calls) == 1
    moments.update(inputs(5, 16))
    alps.solve(weights(6, 16), moments, FREE, 0.5)
    assert len(calls) == 2


def test_sparsegpt_shares_the_factor_between_readers_of_one_input(monkeypatch: pytest.MonkeyPatch) -> None:
    moments, calls = gathered(inputs(90, 16)), []
    factor = sparsegpt.inverse_upper
    monkeypatch.setattr(sparsegpt, "inverse_upper", lambda *a: calls.append(1) or factor(*a))
    for seed in (1, 2, 3):
        sparsegpt.solve(weights(4, 16, seed), moments, FREE, 0.5)
    assert len(calls) == 1


@pytest.mark.parametrize(("count", "width"), [(14, 1), (6, 3), (4, 8)])
@pytest.mark.parametrize("delay", [1, 4, 64])
def test_obs(count: int, width: int, delay: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obs, "DELAY", delay)
    x, reader = inputs(120, count * width), weights(5, count * width)
    x[:, 2] = 0
    scores = obs.score_units(Units(reader, gathered(x), width, reader.T), damping=0.01)
    order, objective = references.obs(reader, x, width, 0.01)
    assert scores.argsort().tolist() == order
    torch.testing.assert_close(
        scores.sort().values, torch.tensor(objective, dtype=torch.float64), rtol=1e-4, atol=1e-6
    )


def test_obs_sees_that_one_of_two_copies_is_free() -> None:
    x = inputs(200, 6)
    x[:, 5] = x[:, 0]
    reader = weights(4, 6)
    scores = obs.score_units(Units(reader, gathered(x), 1, reader.T), damping=1e-6)
    first, second = scores.argsort()[:2].tolist()
    assert first in {0, 5}
    assert second not in {0, 5}
    assert scores[first] < 1e-4 * scores[second]


def test_obs_keeps_its_order_where_costs_are_equal() -> None:
    units = Units(torch.zeros(3, 5), gathered(inputs(50, 5)), 1, torch.zeros(5, 3))
    assert METHODS["obs"].score_units is not None
    scores = METHODS["obs"].score_units(units)
    assert (scores.diff() > 0).all()


def test_obs_stays_exact_over_many_removals() -> None:
    """After 200 downdates the objective still equals a fresh solve."""
    x, reader = inputs(600, 256), weights(32, 256)
    moments = gathered(x)
    scores = obs.score_units(Units(reader, moments, 1, reader.T), damping=1e-3)
    kept = scores.argsort()[200:].sort().values
    H = references.damped_second_moments(x, 1e-3)
    assert float(scores.sort().values[199]) == pytest.approx(
        references.best_fit_error(reader, H, kept.tolist()), rel=1e-4
    )


def test_better_methods_leave_less_error() -> None:
    W, x = weights(24, 64), inputs(1000, 64)
    moments: Moments = gathered(x)
    errors = {}
    for name in ("magnitude", "wanda", "sparsegpt"):
        method = METHODS[name]
        if method.score is not None:
            pruned = W * FREE.mask(method.score(W, moments), 0.5, method.scope)
        else:
            assert method.solve is not None
            pruned = method.solve(W, moments, FREE, 0.5).weight
        errors[name] = quadratic_error(W, pruned, moments.gram)[1]
    assert errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]


def test_block_influence() -> None:
    h_in, h_out = inputs(20, 6).view(4, 5, 6), inputs(20, 6, seed=5).view(4, 5, 6)
    expected = 0.0
    for a, b in zip(h_in.view(-1, 6).double(), h_out.view(-1, 6).double(), strict=True):
        expected += 1 - float(a @ b) / float(a @ a * (b @ b)) ** 0.5
    assert block_influence(h_in, h_out) == pytest.approx(expected / 20, rel=1e-5)
    assert block_influence(h_in, 3 * h_in) == pytest.approx(0, abs=1e-6)
    assert block_influence(h_in, -h_in) == pytest.approx(2)
    assert block_influence(torch.zeros(2, 3), torch.zeros(2, 3)) == 0
    parts = [BlockInfluence(), BlockInfluence()]
    assert parts[0].value == 0
    parts[0].update(h_in[:1], h_out[:1])
    parts[1].update(h_in[1:], h_out[1:])
    parts[0].merge(parts[1])
    assert parts[0].value == pytest.approx(expected / 20, rel=1e-5)
