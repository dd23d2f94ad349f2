"""Wishes as limits of the integer programme, and whether a model keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from secateur.config.wishes import Wish
from secateur.errors import InputError
from secateur.model.streamed import StreamedModel
from secateur.search.latency import ALL, TIMES, Seconds, Timings
from secateur.search.programme import Limit
from secateur.search.space import LAYER, Amounts, Candidate, Piece, Space, bytes_of, part_of


class Measures(NamedTuple):
    """What models take, by the name of a wish: of the untouched model, and what each piece saves of it.

    Args:
        gone: what is saved before any piece goes: with hidden dimensions.
    """

    whole: Mapping[str, float]
    saves: Mapping[str, Mapping[Piece, float]]
    gone: Mapping[str, float] = MappingProxyType({})

    def left(self, about: str, candidate: Candidate) -> float:
        """What a candidate takes."""
        return self.whole[about] - self.gone.get(about, 0.0) - sum(self.saves[about][piece] for piece in candidate)

    def all_left(self, candidate: Candidate) -> dict[str, float]:
        """The same of everything that is known."""
        return {about: self.left(about, candidate) for about in self.whole}


def measures_of(space: Space, streamed: StreamedModel) -> Measures:
    """Everything that follows from shapes alone."""
    zero = Amounts(0.0, 0.0, 0.0)

    def size(amounts: Amounts) -> float:
        return bytes_of(streamed, amounts, space.whole.params)[0]

    def memory(amounts: Amounts) -> float:
        return bytes_of(streamed, amounts, space.whole.params)[1]

    of: dict[str, Callable[[Amounts], float]] = {
        "params": lambda amounts: amounts.params,
        "flops": lambda amounts: amounts.flops,
        "size": size,
        "memory": memory,
    }
    assert size(zero) == memory(zero) == 0
    return Measures(
        {about: measure(space.whole) for about, measure in of.items()},
        {about: {p: measure(saved) for p, saved in space.saves.items()} for about, measure in of.items()},
    )


def timed_measures(
    measures: Measures, timings: Timings, space: Space, factors: Mapping[str, float], form: Seconds = ALL
) -> Measures:
    """The same with seconds.

    Args:
        factors: by what is meant, what the table's savings are multiplied by.
        form: the untouched model's in the form that models are in, as fractions; so much of what pieces save is left.
    """
    whole, gone = dict[str, float](), dict[str, float]()
    saves: dict[str, Mapping[Piece, float]] = {}
    for about, seconds, share in zip(TIMES, timings.whole, form, strict=True):
        whole[about], gone[about] = seconds, (1 - share) * seconds
        saves[about] = timings.of_pieces(space, about, share * factors[about])
    return Measures({**measures.whole, **whole}, {**measures.saves, **saves}, {**measures.gone, **gone})


def narrowed(own: Measures, untouched: Measures) -> Measures:
    """Those of a model with fewer hidden dimensions, as parts of the untouched model's."""
    gone = {about: untouched.whole[about] - own.whole[about] for about in own.whole}
    return Measures(untouched.whole, own.saves, gone)


def limits_of(wishes: Sequence[Wish], measures: Measures, space: Space) -> list[Limit]:
    """The limits that wishes about what a model takes stand for.

    Raises:
        InputError: one that holds already, or that no candidate keeps.
    """
    limits = []
    for wish in (wish for wish in wishes if wish.of_cost):
        whole = measures.whole[wish.about]
        gone = measures.gone.get(wish.about, 0.0)
        if wish.limit(whole) >= whole:
            raise InputError(f"wish '{wish.text}': the model has {said(wish.about, whole)} already; ask for less")
        need = whole - wish.limit(whole) - gone
        if need <= 0:
            continue
        saves = measures.saves[wish.about]
        most = _most(saves, space)
        if most < need:
            least = said(wish.about, whole - gone - most)
            raise InputError(
                f"wish '{wish.text}': with all gone that may go there are still {least}; ask for more, or allow more "
                "sites"
            )
        limits.append(Limit(saves, need, wish.text))
    return limits


def _most(saves: Mapping[Piece, float], space: Space) -> float:
    """The most that any candidate saves."""
    layers = []
    for index in range(space.layers):
        own = [piece for piece in saves if piece.layer == index]
        best: dict[str, float] = {}
        for piece in own:
            part = part_of(piece.kind)
            best[part] = max(best.get(part, 0.0), saves[piece])
        whole = best.pop(LAYER, 0.0)
        layers.append((sum(best.values()), max(whole, sum(best.values()))))
    # One layer stays: that where it costs least.
    return sum(most for _, most in layers) - min(most - inside for inside, most in layers)


def said(about: str, value: float) -> str:
    """An amount as people read it."""
    if about in ("latency", "prefill"):
        return f"{1000 * value:.3g} ms {'a token' if about == 'latency' else 'a prompt'}"
    unit = {"params": "parameters", "flops": "FLOPs a token"}.get(about, "bytes")
    return f"{value:,.0f} {unit}"
