"""Merging experts: the order of hidden units, the mean, and the choice of merges, each against a slow way."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from secateur.numerics.merging import Expert, aligned, assignment, hidden_units, likeness, merged, worthwhile

CHANNELS, HIDDEN = 12, 7


def expert(seed: int) -> Expert:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(2 * CHANNELS, HIDDEN, generator=generator)
    return up, torch.randn(HIDDEN, CHANNELS, generator=generator)


def shuffled(one: Expert, seed: int = 5) -> Expert:
    """The same function, its hidden units in another order."""
    order = torch.randperm(CHANNELS, generator=torch.Generator().manual_seed(seed))
    gate, up = one[0].chunk(2)
    return torch.cat([gate[order], up[order]]), one[1][:, order]


def written(one: Expert, x: Tensor) -> Tensor:
    """SiLU-gated, hidden unit by hidden unit, in fp64; (tokens, hidden)."""
    up, down = (part.double() for part in one)
    out = torch.zeros_like(x, dtype=torch.float64)
    for t, token in enumerate(x.double()):
        for c in range(CHANNELS):
            gate, through = float(up[c] @ token), float(up[CHANNELS + c] @ token)
            out[t] += gate / (1 + torch.tensor(-gate, dtype=torch.float64).exp()) * through * down[:, c]
    return out


def together(worth: Tensor, order: Tensor) -> float:
    return sum(float(worth[row, column]) for row, column in enumerate(order.tolist()))


@pytest.mark.parametrize("n", [1, 2, 9, 60])
def test_a_permutation_is_found_exactly(n: int) -> None:
    units = torch.randn(n, 5, generator=torch.Generator().manual_seed(n))
    units = units / units.norm(dim=1, keepdim=True)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    found = assignment(units @ units[order].T)
    assert torch.equal(order[found], torch.arange(n))


def test_no_swap_of_two_is_better_and_the_best_of_all_is_near() -> None:
    optimum = pytest.importorskip("scipy.optimize").linear_sum_assignment
    for seed in range(5):
        worth = torch.randn(40, 40, generator=torch.Generator().manual_seed(seed)).double()
        order = assignment(worth)
        assert sorted(order.tolist()) == list(range(40))
        for i, j in itertools.combinations(range(40), 2):
            a, b = order[i], order[j]
            assert worth[i, b] + worth[j, a] <= worth[i, a] + worth[j, b] + 1e-4
        rows, columns = optimum(worth.numpy(), maximize=True)
        assert together(worth, order) >= 0.9 * float(worth.numpy()[rows, columns].sum())


def test_equal_units_and_units_of_nothing_are_joined_too() -> None:
    for worth in (torch.zeros(6, 6), torch.ones(6, 6), torch.full((3, 3), torch.nan)):
        assert sorted(assignment(worth).tolist()) == list(range(len(worth)))


def test_alignment_undoes_a_permutation() -> None:
    one = expert(0)
    other = shuffled(one)
    assert not torch.equal(other[0], one[0])
    back = aligned(other, to=one)
    assert all(torch.equal(a, b) for a, b in zip(back, one, strict=True))
    for a, b in zip(merged([one, back, aligned(shuffled(one, 6), to=one)], [3, 1, 9]), one, strict=True):
        torch.testing.assert_close(a, b)
    x = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(written(other, x), written(one, x))
    # Without alignment the mean is another function.
    assert (written(merged([one, other], [1, 1]), x) - written(one, x)).abs().max() > 0.1


def test_alignment_changes_no_function_whatever_it_is_like() -> None:
    one, other = expert(0), expert(1)
    x = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(written(aligned(other, to=one), x), written(other, x))
    units = hidden_units(one)
    gate, up = one[0].chunk(2)
    for c in range(CHANNELS):
        assert units[c].tolist() == [*gate[c].tolist(), *up[c].tolist(), *one[1][:, c].tolist()]
    distance = [float((units - hidden_units(e)).square().sum()) for e in (aligned(other, to=one), other)]
    assert distance[0] < distance[1]


def test_the_mean_is_by_tokens() -> None:
    experts, tokens = [expert(0), expert(1), expert(2)], [5.0, 0.0, 3.0]
    for part, found in enumerate(merged(experts, tokens)):
        for row in range(found.shape[0]):
            for column in range(found.shape[1]):
                values = [float(e[part][row, column]) * n for e, n in zip(experts, tokens, strict=True)]
                assert float(found[row, column]) == pytest.approx(sum(values) / 8, abs=1e-6)
    assert torch.equal(merged(experts, [0.0, 0.0, 0.0])[0], experts[0][0])
    assert merged([(e[0].half(), e[1].half()) for e in experts], tokens)[0].dtype == torch.float16


def test_likeness_is_the_cosine_of_all_outputs() -> None:
    outputs = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)).double()
    outputs[3] = 0
    found = likeness(outputs @ outputs.T)
    for i, j in itertools.product(range(3), repeat=2):
        cosine = float(outputs[i] @ outputs[j] / outputs[i].norm() / outputs[j].norm())
        assert float(found[i, j]) == pytest.approx(cosine)
    assert not found[3].any()


def test_changes_are_made_as_long_as_the_error_falls() -> None:
    """Against every subset there is; the error itself, not the products it's told from."""
    owners = [0, 0, 1, 2, 2, 2]
    found_best = 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        missing = torch.randn(20, generator=generator).double()
        changes = torch.randn(6, 20, generator=generator).double() * 0.4 + 0.3 * missing

        def error(some: tuple[int, ...], missing: Tensor = missing, changes: Tensor = changes) -> float:
            return float((missing - changes[list(some)].sum(0)).square().sum())

        made = worthwhile(changes @ changes.T, changes @ missing, owners, error(()))
        chosen = tuple(made.nonzero().flatten().tolist())
        allowed = [
            some
            for size in range(4)
            for some in itertools.combinations(range(6), size)
            if len({owners[c] for c in some}) == len(some)
        ]
        assert chosen in allowed
        steps = [some for some in allowed if len({owners[c] for c in set(some) ^ set(chosen)}) == 1]
        assert error(chosen) <= min(error(some) for some in [(), *steps]) + 1e-6
        found_best += error(chosen) <= min(error(some) for some in allowed) + 1e-6
    assert found_best >= 30


def test_what_helps_nothing_is_not_done() -> None:
    harmful = torch.eye(3).double()
    assert not worthwhile(harmful, torch.tensor([0.0, -1.0, 0.4]).double(), [0, 1, 1], 9.0).any()
    assert worthwhile(harmful, torch.tensor([0.0, -1.0, 0.6]).double(), [0, 1, 1], 9.0).tolist() == [
        False,
        False,
        True,
    ]
    assert worthwhile(torch.zeros(0, 0), torch.zeros(0), [], 1.0).shape == (0,)
