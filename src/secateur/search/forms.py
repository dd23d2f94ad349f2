"""How the whole model is stored: one choice for all of it, so each form has candidates of its own.

A form (a number format, zeros of single weights) saves bytes of everything that is left, in proportion, and loses
something before anything goes. So pieces and what each costs alone are those of the model as it is, and what they
save are bytes in that form; candidates are put together, changed as the form would have them, and measured against
the untouched model. The form that takes most comes first. A number format that loses more alone than the best
candidate so far is passed over; so are more zeros where fewer suffice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

from secateur.config.wishes import Wish
from secateur.errors import InputError
from secateur.report.schema.search import FormatFacts
from secateur.search.form import Form
from secateur.search.found import Found
from secateur.search.prepared import beyond
from secateur.search.space import Space
from secateur.search.stopwatch import fast_enough
from secateur.search.trial import Evaluate
from secateur.search.wanted import Measures, limits_of


def check_reachable(wishes: Sequence[Wish], every: Sequence[tuple[Measures, Space]]) -> None:
    """Refuses wishes that can't be kept in any form.

    Raises:
        InputError: as `limits_of`, of the last one.
    """
    for place, (measures, space) in enumerate(every):
        try:
            limits_of(wishes, measures, space)
        except InputError:
            if place == len(every) - 1:
                raise
        else:
            return


def best_form(
    wishes: Sequence[Wish],
    forms: Sequence[Form],
    measured_in: Callable[[Form], AbstractContextManager[Evaluate]],
    within: Callable[[Form, Evaluate], Found],
    over: Callable[[], bool],
) -> Found:
    """What is found in the form in which the best candidate loses least, and in those that may turn out better.

    A repair makes up for more of what zeros lose than of what units do. So a form with more zeros than the best one's
    may be better as a model, unless one that keeps the wishes by itself has fewer.

    Args:
        forms: those that take most first.
        measured_in: gives what measures candidates as they'd be in a form.
        within: gives what is found in a form with candidates measured so.
        over: whether time is up; then what has been found is all.

    Raises:
        InputError: no form has a candidate that keeps the wishes, or an export of the model as it is does.
    """
    every: list[Found] = []
    facts: list[FormatFacts] = []
    refused: InputError | None = None
    for form in forms:
        facts.append(_fact(form))
        if (every and over()) or any(_suffices(one, wishes) for one in every):
            continue
        with measured_in(form) as evaluate:
            [alone] = evaluate([()])
            facts[-1]["kl"] = alone
            if form.zeros is None and any(alone >= one.divergence for one in every):
                continue
            try:
                other = within(form, partial(beyond, evaluate, alone))
            except InputError as error:  # nothing keeps the wishes in this one
                refused = error
                continue
        every.append(replace(other.above(alone), form=form))
        facts[-1]["best"] = every[-1].divergence
    if not every:
        assert refused is not None
        raise refused
    quick = [one for one in every if _quick(one, wishes)] or every
    best = min(quick, key=lambda one: one.divergence)
    assert best.form is not None
    if not best.best and best.form.zeros is None:
        told = ", ".join(wish.text for wish in wishes)
        raise InputError(
            f"wishes {told}: kept as {best.form.name} with nothing gone, at a KL of {best.divergence:.2g}; use "
            f"secateur export MODEL --to gguf --type {best.form.name}"
        )
    others = [one for one in quick[quick.index(best) + 1 :] if one.form is not None and one.form.zeros is not None]
    return replace(best, formats=chosen(facts, best.form.name), others=tuple(others))


def _suffices(found: Found, wishes: Sequence[Wish]) -> bool:
    """Whether zeros keep the wishes with nothing else gone."""
    return found.form is not None and found.form.zeros is not None and found.best == () and _quick(found, wishes)


def _quick(found: Found, wishes: Sequence[Wish]) -> bool:
    """Whether the best candidate is as fast as was wished for, as it was timed last."""
    return not found.timed or fast_enough(found.timed[-1], wishes)


def _fact(form: Form) -> FormatFacts:
    size = form.measures.left("size", ())
    return {"type": form.name, "bytes": size, "kl": None, "best": None, "perplexity": None, "chosen": False}


def chosen(
    facts: Sequence[FormatFacts], name: str, perplexities: Mapping[str, float | None] | None = None
) -> tuple[FormatFacts, ...]:
    """The same where the form of that name is the result's.

    Args:
        perplexities: by name, of the models that were made.
    """
    known = perplexities or {}
    return tuple({**fact, "chosen": fact["type"] == name, "perplexity": known.get(fact["type"])} for fact in facts)
