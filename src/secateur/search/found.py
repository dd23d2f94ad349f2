"""What a search has come to, as frozen records."""

from __future__ import annotations

from dataclasses import dataclass, replace

from secateur.pipeline.inputs import Inputs
from secateur.report.schema.search import FormatFacts
from secateur.search.form import Form
from secateur.search.latency import TIMES, Seconds
from secateur.search.predict import Costs, from_others
from secateur.search.refine import Tried
from secateur.search.space import Candidate, Space
from secateur.search.trial import Against
from secateur.search.wanted import Measures
from secateur.workspace.folder import LEVELS


@dataclass(frozen=True)
class TimedCandidate:
    """A candidate that was timed as it is: seconds of the untouched model beside it, as predicted, as measured."""

    candidate: Candidate
    whole: Seconds
    predicted: Seconds
    measured: Seconds


@dataclass(frozen=True)
class Narrow:
    """A model with fewer hidden dimensions, in which candidates are looked for.

    Args:
        inputs, kinds: of that model, on the text of the untouched one.
        kept: its dimensions.
        share: that goes, as a recipe says it.
        untouched: what the untouched model takes.
    """

    inputs: Inputs
    kinds: frozenset[str]
    kept: int
    share: float
    against: Against
    untouched: Measures

    @property
    def key(self) -> str:
        """What its files and its notes are called by."""
        return f"hidden-{self.kept}"


@dataclass(frozen=True)
class Found:
    """What a search has come to.

    Args:
        tried: every candidate that was measured.
        best: the one that loses least of those that keep the wishes; None without wishes about what a model takes.
        timed: the candidates that were timed, in order.
        finalists: those that are to be compared as models, the best one first; empty where it is the choice.
        narrow: the model that the candidates are of, where it has fewer hidden dimensions.
        form, formats: in which the whole model is stored, and what came of each that was looked at.
        others: what is found in other forms that may turn out better as models.
    """

    space: Space
    measures: Measures
    costs: Costs
    tried: tuple[Tried, ...]
    best: Candidate | None = None
    timed: tuple[TimedCandidate, ...] = ()
    finalists: tuple[Candidate, ...] = ()
    narrow: Narrow | None = None
    form: Form | None = None
    formats: tuple[FormatFacts, ...] = ()
    others: tuple[Found, ...] = ()

    def above(self, alone: float) -> Found:
        """The same where the model that the candidates are of loses so much before anything goes."""
        return replace(self, tried=tuple(Tried(one, a + alone, b + alone) for one, a, b in self.tried))

    def from_others(self) -> Found:
        """The same, of each candidate what is predicted of it by all the others."""
        said = from_others(self.space, self.costs, [(one.candidate, one.measured) for one in self.tried])
        each = (one._replace(predicted=value) for one, value in zip(self.tried, said, strict=True))
        return replace(self, tried=tuple(each))

    @property
    def divergence(self) -> float:
        """Of the best candidate."""
        return next(one.measured for one in self.tried if one.candidate == self.best)

    @property
    def levels(self) -> str:
        """The folder of its pieces, in the work area."""
        return LEVELS if self.narrow is None else f"{LEVELS}/{self.narrow.key}"

    @property
    def front(self) -> tuple[Candidate, ...]:
        """Candidates that no other one beats both in divergence and in parameters, or in divergence and in time."""
        found: dict[Candidate, None] = {}
        for about in (about for about in ("params", *TIMES) if about in self.measures.whole):
            least = float("inf")
            for one in sorted(self.tried, key=lambda one: (self.measures.left(about, one.candidate), one.measured)):
                if one.measured < least:
                    least, found[one.candidate] = one.measured, None
        return tuple(found)
