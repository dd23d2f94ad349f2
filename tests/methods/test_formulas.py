"""Each method against its slow twin in `references`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from secateur.errors import SecateurError
from secateur.methods import (
    METHODS,
    Units,
    activation,
    alps,
    expert_frequency,
    flap,
    gblm,
    magnitude,
    mi,
    mi_pairs,
    obs,
    random,
    reap,
    sparsegpt,
    wanda,
    wanda_regional,
)
from secateur.methods.block_influence import BlockInfluence, block_influence
from secateur.numerics import elimination
from secateur.numerics.linalg import quadratic_error
from secateur.numerics.moments import Moments
from secateur.numerics.patterns import Pattern
from secateur.numerics.routing import Routing
from tests.methods import references
from tests.methods.activations import choices, experts_of, gathered, inputs, routed, slopes, weights

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
    monkeypatch.setattr(elimination, "DELAY", delay)
    x, consumer = inputs(120, count * width), weights(5, count * width)
    x[:, 2] = 0
    scores = obs.score_units(Units(consumer, gathered(x), width, consumer.T), damping=0.01)
    order, objective = references.obs(consumer, x, width, 0.01)
    assert scores.argsort().tolist() == order
    torch.testing.assert_close(
        scores.sort().values, torch.tensor(objective, dtype=torch.float64), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(("count", "width"), [(10, 1), (4, 3)])
def test_mi_is_energy_times_what_the_others_do_not_know(count: int, width: int) -> None:
    """The first to go, by its definition: I(z_q; all others) from determinants, energy from the reader."""
    x, consumer = inputs(200, count * width), weights(5, count * width)
    H = references.damped_second_moments(x, mi.RIDGE)
    costs = []
    for unit in range(count):
        own = list(range(unit * width, (unit + 1) * width))
        rest = [j for j in range(count * width) if j not in own]
        left = H[own][:, own] - H[own][:, rest] @ torch.linalg.inv(H[rest][:, rest]) @ H[rest][:, own]
        costs.append(float((consumer[:, own].double() @ left * consumer[:, own]).sum()))
        if width == 1:
            energy = float(consumer[:, own].square().sum()) * float(H[own][:, own])
            dets = [torch.linalg.det(H[part][:, part]) for part in (own, rest, own + rest)]
            nats = 0.5 * float(torch.log(dets[0] * dets[1] / dets[2]))
            assert energy * 2.718281828459045 ** (-2 * nats) == pytest.approx(costs[-1], rel=1e-6)
    scores = mi.score_units(Units(consumer, gathered(x), width, consumer.T))
    assert int(scores.argmin()) == costs.index(min(costs))
    assert float(scores.min()) == pytest.approx(min(costs), rel=1e-5)
    order, objective = references.obs(consumer, x, width, mi.RIDGE)
    assert scores.argsort().tolist() == order
    torch.testing.assert_close(
        scores.sort().values, torch.tensor(objective, dtype=torch.float64), rtol=1e-3, atol=1e-6
    )


def test_mi_pairs_removes_one_of_each_pair_first() -> None:
    x = inputs(400, 6)
    x[:, 4] = x[:, 1] + 0.05 * inputs(400, 1, 5)[:, 0]
    scores = mi_pairs.score_units(Units(weights(3, 6), gathered(x), 1, weights(6, 2)))
    assert int(scores.argmin()) in (1, 4)
    assert sorted(scores.tolist()) == [1, 2, 3, 4, 5, 6]


def test_the_order_of_pairs_is_that_of_the_plain_loop() -> None:
    shared = weights(9, 9).abs()
    shared = (shared + shared.T).fill_diagonal_(0).double()
    pairs = sorted(((float(shared[k, i]), k, i) for k in range(9) for i in range(k)), reverse=True)
    gone: list[int] = []
    for _, k, i in pairs:
        if k not in gone and i not in gone:
            gone.append(k if shared[k].sum() > shared[i].sum() else i)
    assert mi_pairs.removal_order(shared)[:-1] == gone


@pytest.mark.parametrize("width", [1, 4])
def test_gradient_criteria_of_units(width: int, make_units: Callable[..., Units]) -> None:
    units = make_units(width=width)
    slope = slopes(units.group)
    found = {n: METHODS[n].score_units(units) for n in METHODS if METHODS[n].loss and METHODS[n].score_units}
    assert set(found) == {
        "taylor",
        "taylor_group",
        "taylor2",
        "fisher",
        "gate_fisher",
        "gradient_activation",
        "entropy_taylor",
    }
    for u in range(units.count):
        rows = [
            [float(t[u, e]) for t in (units.group, slope["gradient"], slope["fisher"], slope["entropy_gradient"])]
            for e in range(units.group.shape[1])
        ]
        consumer = rows[10:]  # as `make_units` puts them
        expected = {
            "taylor": sum(abs(w * g) for w, g, _, _ in rows),
            "taylor_group": abs(sum(w * g for w, g, _, _ in rows)),
            "taylor2": sum(abs(w * g - 0.5 * w * w * f) for w, g, f, _ in rows),
            "fisher": sum(0.5 * w * w * f for w, _, f, _ in rows),
            "gradient_activation": abs(sum(w * g for w, g, _, _ in consumer)),
            "entropy_taylor": sum(abs(w * h) for w, _, _, h in rows),
        }
        share = slope["input_fisher"][u, 10:]
        expected["gate_fisher"] = 0.5 * sum(float(part) for part in share)
        for name, value in expected.items():
            assert float(found[name][u]) == pytest.approx(value, rel=1e-4), name


def test_gradient_criteria_of_weights() -> None:
    W, x = weights(5, 8), inputs(30, 8)
    moments, slope = gathered(x), slopes(W)
    rms = [float(x[:, j].square().mean().sqrt()) for j in range(8)]
    for method, size in ((gblm, slope["fisher"].sqrt()), (wanda_regional, slope["regional"])):
        found = method.score(W, moments, slope)
        for i, j in ((0, 0), (4, 7), (2, 5)):
            share = rms[j] / (sum(rms) / 8) + float(size[i, j]) / (sum(size.flatten().tolist()) / 40)
            assert float(found[i, j]) == pytest.approx(abs(float(W[i, j])) * share, rel=1e-4)
    found = METHODS["taylor"].score(W, moments, slope), METHODS["fisher"].score(W, moments, slope)
    w, g, f = (float(t[3, 2]) for t in (W, slope["gradient"], slope["fisher"]))
    assert float(found[0][3, 2]) == pytest.approx(abs(w * g), rel=1e-5)
    assert float(found[1][3, 2]) == pytest.approx(w * w * f / 2, rel=1e-5)


def test_activation() -> None:
    x = inputs(30, 8) + 1
    found = activation.score_units(Units(weights(5, 8), gathered(x), 4, weights(2, 3)))
    expected = [sum(abs(float(t)) for t in x[:, u * 4 : u * 4 + 4].flatten()) / 30 for u in range(2)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_random_differs_by_seed_and_not_by_run(make_units: Callable[..., Units]) -> None:
    units = make_units()
    first, again = (METHODS["random"].score_units(units) for _ in range(2))
    assert torch.equal(first, again)
    other = METHODS["random"].score_units(Units(units.consumer, units.moments, 1, units.group, seed=1))
    assert not torch.equal(first, other)


def test_obs_sees_that_one_of_two_copies_is_free() -> None:
    x = inputs(200, 6)
    x[:, 5] = x[:, 0]
    consumer = weights(4, 6)
    scores = obs.score_units(Units(consumer, gathered(x), 1, consumer.T), damping=1e-6)
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
    x, consumer = inputs(600, 256), weights(32, 256)
    moments = gathered(x)
    scores = obs.score_units(Units(consumer, moments, 1, consumer.T), damping=1e-3)
    kept = scores.argsort()[200:].sort().values
    H = references.damped_second_moments(x, 1e-3)
    assert float(scores.sort().values[199]) == pytest.approx(
        references.best_fit_error(consumer, H, kept.tolist()), rel=1e-4
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


def test_experts() -> None:
    chosen, gates, norms = choices(70, 5)
    experts = experts_of(chosen, gates, norms)
    own = [[t for t in range(70) if bool(chosen[t, j])] for j in range(5)]
    terms = [[float(gates[t, j]) * float(norms[t, j]) for t in tokens] for j, tokens in enumerate(own)]
    means = [sum(own_terms) / len(own_terms) for own_terms in terms]
    assert reap.score_experts(experts).tolist() == pytest.approx(means, rel=1e-9)
    shares = [len(tokens) / 70 for tokens in own]
    assert expert_frequency.score_experts(experts).tolist() == pytest.approx(shares, rel=1e-12)
    assert sum(shares) == pytest.approx(2)
    assert experts.routing.gates.sum() == pytest.approx(70)
    assert torch.equal(magnitude.score_experts(experts), experts.norms)
    assert not torch.equal(*(random.score_experts(replace(experts, seed=seed)) for seed in (0, 1)))


def test_routing_adds_up_over_batches_and_says_what_it_lacks() -> None:
    chosen, gates, norms = choices(70, 5)
    whole, first, second = (routed(chosen[s], gates[s], norms[s]) for s in (slice(70), slice(31), slice(31, 70)))
    for mine, theirs in zip(first.tensors(), second.tensors(), strict=True):
        mine += theirs
    assert (first.seen, first.tokens.tolist()) == (70, whole.tokens.tolist())
    torch.testing.assert_close(first.outputs, whole.outputs)
    torch.testing.assert_close(first.gates, whole.gates)
    with pytest.raises(SecateurError, match="'outputs' wasn't gathered; ask for the need 'expert_outputs'"):
        _ = Routing(5, frozenset({"routes"})).outputs
    with pytest.raises(SecateurError, match="'tokens' wasn't gathered; ask for the need 'routes'"):
        _ = Routing(5, frozenset()).tokens
    with pytest.raises(SecateurError, match=r"routing \['gram'\] is unknown"):
        Routing(5, frozenset({"gram"}))
