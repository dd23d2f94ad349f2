"""What candidates take in seconds: by the table of their pieces, and timed as they are; a journal remembers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from secateur.allocation.job import Job
from secateur.config.searching import SearchSettings
from secateur.config.wishes import Wish
from secateur.search.found import TimedCandidate
from secateur.search.latency import ALL, OFF, TIMES, Seconds, Timings, time_of, timed, timed_pieces, without_them
from secateur.search.space import Candidate, Space
from secateur.search.wanted import Measures, timed_measures
from secateur.search.zeros import Zeros
from secateur.system.monitor import Monitor
from secateur.workspace.journal import Journal

TIMINGS, TIMED = "timings", "timed"  # in the journal


def times(settings: SearchSettings) -> bool:
    """Whether seconds are of interest: somebody asked for some, or for the whole front."""
    return not settings.wishes or any(wish.about in TIMES for wish in settings.wishes)


def fast_enough(looked: TimedCandidate, wishes: Sequence[Wish]) -> bool:
    """Whether a candidate that was timed keeps the wishes about seconds."""
    known = [wish for wish in wishes if wish.about in TIMES]
    return all(
        getattr(looked.measured, wish.about) <= (1 + OFF) * wish.limit(getattr(looked.whole, wish.about))
        for wish in known
    )


@dataclass(frozen=True)
class Stopwatch:
    """Times candidates.

    Args:
        zeros: that models are without while they run; None: they run as they are.
        form: what the untouched model takes without them, as fractions of its own seconds.
    """

    job: Job
    timings: Timings
    journal: Journal
    zeros: Zeros | None = None
    form: Seconds = ALL

    @classmethod
    def of(cls, job: Job, space: Space, monitor: Monitor, journal: Journal) -> Stopwatch:
        """Times the shapes; those of an interrupted search are used again."""
        known = journal.noted(TIMINGS)
        with monitor.stage("time shapes", len(timed_pieces(space))) as step:
            found = Timings.from_json(known) if known is not None else timed(job, space, step)
        if known is None:
            journal.note(TIMINGS, found.to_json())
        return cls(job, found, journal)

    def without(self, zeros: Zeros | None) -> Stopwatch:
        """One for models that run without such zeros."""
        if zeros is None:
            return self
        found = replace(self, zeros=zeros)
        known = self.journal.noted(TIMINGS + found._name)
        if known is None:
            known = list(without_them(self.job, zeros))
            self.journal.note(TIMINGS + found._name, known)
        return replace(found, form=Seconds(*known))

    @property
    def _name(self) -> str:
        """What tells its notes in the journal from others."""
        return "" if self.zeros is None else f"-{self.zeros.pattern}-{self.zeros.share}"

    def measures(self, measures: Measures, space: Space, factors: Mapping[str, float]) -> Measures:
        """The same with seconds by the table, what pieces save times a factor."""
        return timed_measures(measures, self.timings, space, factors, self.form)

    def look_at(self, candidate: Candidate, measures: Measures) -> TimedCandidate:
        """A candidate timed as it is."""
        told, key = [list(piece) for piece in candidate], TIMED + self._name
        known = next((seconds for pieces, seconds in self.journal.every(key) if pieces == told), None)
        if known is None:
            known = [list(seconds) for seconds in time_of(self.job, candidate, self.zeros)]
            self.journal.note(key, [told, known])
        predicted = Seconds(*(measures.left(about, candidate) for about in TIMES))
        whole, measured = (Seconds(*seconds) for seconds in known)
        return TimedCandidate(candidate, whole, predicted, measured)

    def corrected(self, factors: dict[str, float], looked: TimedCandidate, wishes: Sequence[Wish]) -> bool:
        """Corrects the factors by what was measured, in place; whether any limit is missed by so much that it
        matters."""
        matters = False
        for place, about in enumerate(TIMES):
            whole, predicted, measured = (
                seconds[place] for seconds in (looked.whole, looked.predicted, looked.measured)
            )
            for wish in (wish for wish in wishes if wish.about == about):
                matters |= abs(measured / wish.limit(whole) - 1) > OFF
            # Of seconds as shares of the untouched model's, as it was then and now.
            saved = self.form[place] - measured / whole
            believed = self.form[place] - predicted / whole
            if believed > 0 and saved > 0:
                factors[about] *= min(2.0, max(0.5, saved / believed))
        return matters
