"""The integer programme against trying everything, and what rounds of it find."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from secateur.search import predict
from secateur.search.predict import (
    costs_of,
    fitted,
    from_others,
    measured_pieces,
    predicted,
    rank_correlation,
    weighted,
)
from secateur.search.programme import Limit, solve
from secateur.search.refine import Tried, refined
from secateur.search.space import BOTH, LAYER, LEVELS, Amounts, Candidate, Piece, Space


def space(layers: int = 3, levels: int = 3) -> Space:
    saves: dict[Piece, Amounts] = {}
    shares: dict[Piece, float] = {}
    for layer in range(layers):
        for kind, size in (("channel", 60.0), ("kv_group", 30.0)):
            for level in range(1, levels):
                shares[Piece(layer, kind, level)] = level / levels
                saves[Piece(layer, kind, level)] = Amounts(size * level / levels, size, 1.0)
        for kind, size in (("attention", 31.0), ("ffn", 62.0), (LAYER, 95.0)):
            shares[Piece(layer, kind, 1)] = 1.0
            saves[Piece(layer, kind, 1)] = Amounts(size, size, 2.0)
    return Space(saves, shares, Amounts(100.0 * layers, 1.0, 1.0), layers)


def random_costs(of: Space, seed: int) -> dict[Piece, float]:
    draw = np.random.default_rng(seed)
    return {piece: of.saves[piece].params ** 1.5 * float(draw.uniform(0.2, 2)) for piece in of.saves}


def everything(of: Space) -> Iterator[Candidate]:
    """Every candidate there is."""

    def layer(index: int) -> Iterator[tuple[Piece, ...]]:
        own = [piece for piece in of.saves if piece.layer == index]
        attention = [None, *(p for p in own if p.kind in ("kv_group", "attention"))]
        ffn = [None, *(p for p in own if p.kind in ("channel", "ffn"))]
        for pair in itertools.product(attention, ffn):
            yield tuple(piece for piece in pair if piece is not None)
        yield (Piece(index, LAYER, 1),)

    for parts in itertools.product(*(list(layer(index)) for index in range(of.layers))):
        candidate = tuple(sorted(piece for part in parts for piece in part))
        if sum(piece.kind == LAYER for piece in candidate) < of.layers:
            yield candidate


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_best_of_all(seed: int) -> None:
    of = space()
    costs = random_costs(of, seed)
    params = {piece: saved.params for piece, saved in of.saves.items()}
    cache = {piece: saved.cache for piece, saved in of.saves.items()}
    limits = [Limit(params, 90.0 + 20 * seed, "params"), Limit(cache, 3.0, "cache")]
    within = [c for c in everything(of) if all(sum(x.saves[p] for p in c) >= x.need for x in limits)]
    want = min(predicted(candidate, costs) for candidate in within)
    found = solve(of, costs, limits)
    assert found in within
    assert predicted(found or (), costs) == pytest.approx(want, rel=2e-4)
    inside = solve(of, costs, limits[:1], kinds=("channel", "kv_group"))
    assert inside is None or {piece.kind for piece in inside} <= {"channel", "kv_group"}


def test_a_layer_stays_and_what_cant_be_is_none() -> None:
    of = space()
    costs = random_costs(of, 0)
    params = {piece: saved.params for piece, saved in of.saves.items()}
    most = 2 * 95 + 93  # two layers, and all inside the third
    found = solve(of, costs, [Limit(params, most - 0.5, "")])
    assert found is not None
    assert sum(piece.kind == LAYER for piece in found) == 2
    assert solve(of, costs, [Limit(params, most + 0.5, "")]) is None


def test_around_a_candidate_the_rest_stays() -> None:
    of = space()
    costs = random_costs(of, 1)
    params = {piece: saved.params for piece, saved in of.saves.items()}
    base = solve(of, costs, [Limit(params, 120.0, "")])
    assert base is not None
    other = solve(of, random_costs(of, 2), [Limit(params, 120.0, "")], around=(base, {0}))
    assert other is not None
    assert [piece for piece in other if piece.layer] == [piece for piece in base if piece.layer]


def measure(of: Space, costs: dict[Piece, float]) -> dict[str, float]:
    """A truth that the sum doesn't know: attention of the first layers does three times the harm beside others."""
    return {kind: 3.0 if kind in ("kv_group", "attention") else 1.0 for kind in of.kinds}


def test_rounds_learn_what_the_sum_doesnt_know_and_are_repeatable() -> None:
    of = space(layers=5, levels=3)
    costs = random_costs(of, 3)
    params = {piece: saved.params for piece, saved in of.saves.items()}
    limits, factor = [Limit(params, 200.0, "params")], measure(of, costs)

    def truth(candidate: Candidate) -> float:
        return sum(costs[piece] * factor[piece.kind] for piece in candidate)

    def evaluate(candidates: Sequence[Candidate]) -> list[float]:
        return [truth(candidate) for candidate in candidates]

    found = list(refined(of, costs, limits, evaluate, 24, 0))
    assert len({one.candidate for one in found}) == len(found) <= 24
    assert all(sum(params[piece] for piece in one.candidate) > 199.9 for one in found)
    best = solve(of, {piece: costs[piece] * factor[piece.kind] for piece in costs}, limits)
    reached = min(one.measured for one in found)
    assert reached < found[0].measured  # what was measured helped
    assert reached <= 1.03 * truth(best or ())
    assert list(refined(of, costs, limits, evaluate, 24, 0)) == found
    assert [one.candidate for one in refined(of, costs, limits, evaluate, 24, 1)] != [one.candidate for one in found]
    assert list(refined(of, costs, [Limit(params, 1e6, "")], evaluate, 24, 0)) == []
    over = iter([False, False, True, True, True])
    assert len(list(refined(of, costs, limits, evaluate, 24, 0, lambda: next(over)))) == 3


def test_factors_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of candidates that they weren't fitted to, and each kind of term tells something."""
    of = space(layers=6, levels=4)
    costs = random_costs(of, 4)
    draw = np.random.default_rng(0)
    by_kind = {key: float(draw.uniform(0.5, 4)) for key in sorted({(p.kind, p.layer // 2) for p in costs})}
    by_layer = {key: float(draw.uniform(0.5, 2)) for key in sorted({(p.kind, p.layer) for p in costs})}
    by_level = {level: float(draw.uniform(0.4, 2.5)) for level in (1, 2, 3)}
    factor = {p: by_kind[p.kind, p.layer // 2] * by_layer[p.kind, p.layer] * by_level[p.level] for p in costs}
    params = {piece: saved.params for piece, saved in of.saves.items()}
    needs = [Limit(params, 300.0, "")]
    every = (solve(of, {p: float(draw.uniform(0.1, 1)) * params[p] for p in params}, needs) for _ in range(120))
    truth = [(c, sum(costs[p] * factor[p] for p in c)) for c in every if c]

    def error(prices: dict[Piece, float]) -> float:
        return float(np.mean([abs(np.log(predicted(candidate, prices) / cost)) for candidate, cost in truth[80:]]))

    whole = error(weighted(costs, fitted(of, costs, truth[:80])))
    assert whole < 0.2 * error(costs)
    assert fitted(of, costs, []) == dict.fromkeys(costs, 1.0)
    for place in range(len(predict.TERMS)):
        with monkeypatch.context() as patch:
            patch.setattr(predict, "TERMS", (*predict.TERMS[:place], *predict.TERMS[place + 1 :]))
            assert error(weighted(costs, fitted(of, costs, truth[:80]))) > 1.1 * whole, place


def test_pieces_between_measured_ones_lie_between_them() -> None:
    of = space(layers=1, levels=8)
    calls: list[Candidate] = []

    def evaluate(candidates: Sequence[Candidate]) -> list[float]:
        calls.extend(candidates)
        return [of.saves[candidate[0]].params ** 2 for candidate in candidates]

    costs = costs_of(of, evaluate)
    assert [(piece,) for piece in measured_pieces(of)] == calls
    assert len(calls) < len(of.saves) == len(costs)
    channel = [costs[Piece(0, "channel", level)] for level in range(1, 8)]
    assert channel == sorted(channel)
    for level, cost in enumerate(channel, 1):
        assert cost == pytest.approx((60 * level / 8) ** 2, rel=0.05)


def test_past_the_last_level_that_is_measured_a_curve_ends_where_the_sub_block_is_gone() -> None:
    of = space(layers=1, levels=8)
    without = Space({p: saved for p, saved in of.saves.items() if p.kind != "ffn"}, of.shares, of.whole, 1)
    last = Piece(0, "channel", 7)
    assert last not in measured_pieces(of)
    assert last in measured_pieces(without)  # nothing else says what is there

    def evaluate(candidates: Sequence[Candidate]) -> list[float]:
        return [{"channel": of.shares[piece], "ffn": 9.0}.get(piece.kind, 1.0) for (piece,) in candidates]

    costs = costs_of(of, evaluate)
    assert costs[Piece(0, "channel", 5)] < costs[Piece(0, "channel", 6)] < costs[last] < 9.0
    assert costs[last] > 2 * costs[Piece(0, "channel", 5)]
    assert costs_of(without, evaluate)[last] == last.level / 8


def test_each_is_predicted_by_the_others() -> None:
    """What a candidate itself was measured to cost doesn't tell in what is predicted of it."""
    of = space(layers=6, levels=4)
    costs, draw = random_costs(of, 4), np.random.default_rng(0)
    params = {piece: saved.params for piece, saved in of.saves.items()}
    every = (
        solve(of, {p: float(draw.uniform(0.1, 1)) * params[p] for p in params}, [Limit(params, 300.0, "")])
        for _ in range(12)
    )
    tried = [(candidate, 3 * predicted(candidate, costs)) for candidate in every if candidate]
    found = from_others(of, costs, tried)
    assert found == pytest.approx([cost for _, cost in tried], rel=0.05)
    strange = [*tried[:-1], (tried[-1][0], 2 * tried[-1][1])]
    again = from_others(of, costs, strange)
    assert again[-1] == pytest.approx(found[-1], rel=0.1)  # it shares in the mean factor, and no more
    assert fitted(of, costs, strange)[tried[-1][0][0]] > 1.2 * fitted(of, costs, tried)[tried[-1][0][0]]


def test_heads_together_follow_from_each_alone() -> None:
    """Of four pieces of both kinds one is measured: it costs twice the sum of its parts, and so do the others."""
    shares = {Piece(0, kind, level): level / LEVELS for kind in ("kv_group", "query_head") for level in (2, 4)}
    both = [Piece(0, BOTH, kv * LEVELS + query) for kv in (2, 4) for query in (2, 4)]
    of = Space(
        dict.fromkeys([*shares, *both], Amounts(1, 0, 0)), shares | dict.fromkeys(both, 0.5), Amounts(9, 0, 0), 1
    )
    alone = {("kv_group", 2): 1.0, ("kv_group", 4): 4.0, ("query_head", 2): 0.5, ("query_head", 4): 3.0}
    assert set(measured_pieces(of)) == {both[0], *shares}

    def evaluate(candidates: Sequence[Candidate]) -> list[float]:
        return [alone.get((piece.kind, piece.level), 3.0) for (piece,) in candidates]

    costs = costs_of(of, evaluate)
    assert [costs[piece] for piece in both] == pytest.approx([3.0, 8.0, 9.0, 14.0])


def test_ranks() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert Tried((), 1.0, 2.0).measured == 2.0
