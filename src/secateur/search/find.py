"""From what was opened to the candidates that were measured, and the best of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from secateur.allocation.job import Job
from secateur.config.searching import SearchSettings
from secateur.config.wishes import Wish
from secateur.errors import InputError
from secateur.pipeline.inputs import Inputs, memory_for
from secateur.report.terminal.search import stored
from secateur.search.finalists import finalists
from secateur.search.form import Form
from secateur.search.forms import best_form, check_reachable
from secateur.search.found import Found, Narrow, TimedCandidate
from secateur.search.latency import TIMES
from secateur.search.levels import bytes_of_pieces, write_pieces
from secateur.search.precision import number_formats
from secateur.search.predict import Costs, costs_of, measured_pieces
from secateur.search.prepared import Remembered, beyond, clock, job_of, one_by_one
from secateur.search.programme import Limit
from secateur.search.refine import Tried, refined
from secateur.search.space import Candidate, Space, space_of
from secateur.search.stopwatch import Stopwatch, fast_enough, times
from secateur.search.tasks import AT_ONCE, as_tasks
from secateur.search.trial import Against, Evaluate, Trials
from secateur.search.wanted import Measures, limits_of, measures_of, narrowed
from secateur.search.zero_forms import zero_forms
from secateur.system.monitor import Monitor
from secateur.system.on_ray import OnRay
from secateur.workspace.folder import LEVELS, Workspace
from secateur.workspace.journal import Journal
from secateur.workspace.room import check_room

FRONT = (0.9, 0.8, 0.7, 0.6, 0.5)  # shares that the points of the front are looked for at


@dataclass(frozen=True)
class Ready:
    """What rounds of the search work with."""

    job: Job
    settings: SearchSettings
    space: Space
    costs: Costs
    evaluate: Evaluate
    over: Callable[[], bool]
    step: Callable[[str], None] = lambda text: None
    at_once: int = 1
    watch: Stopwatch | None = None

    def rounds(self, limits: Sequence[Limit], trials: int, known: Sequence[Tried] = ()) -> list[Tried]:
        """Candidates within these limits, measured."""
        found = []
        about = (self.space, self.costs, limits, self.evaluate, trials, self.settings.seed, self.over, known)
        for one in refined(*about, at_once=self.at_once):
            found.append(one)
            self.step(f"KL {one.measured:.4g}")
        return found


def stages(settings: SearchSettings, cluster: OnRay | None = None) -> list[str]:
    """Names of the stages that a search goes through."""
    names = ["calibration text", "open", "cut levels", *(["untouched model"] if cluster is None else [])]
    names += ["each piece alone", *(["time shapes"] if times(settings) else [])]
    forms = len(settings.precision) or len(settings.zeros)
    without = ["candidates"] * (not settings.precision)  # no form, or no zeros
    return [*names, *without, *["model", "candidates"] * forms]


def find(
    settings: SearchSettings,
    inputs: Inputs,
    kinds: frozenset[str],
    workspace: Workspace,
    monitor: Monitor,
    journal: Journal,
    cluster: OnRay | None = None,
    narrow: Narrow | None = None,
) -> Found:
    """Cuts every piece, measures what it costs and saves, and puts candidates together until enough were measured.

    Args:
        cluster: where candidates are measured; None: in this process.
        narrow: the model, where it has fewer hidden dimensions than the untouched one; None: it is that.

    Raises:
        InputError: wishes that nothing keeps.
    """
    memory, key = memory_for(inputs.config, inputs.streamed.device), "" if narrow is None else narrow.key
    levels = workspace.work / LEVELS / key
    over = clock(settings.minutes)
    job = job_of(inputs, monitor, memory, workspace.work)
    space = space_of(job, kinds)
    measures = measures_of(space, inputs.streamed)
    measures = measures if narrow is None else narrowed(measures, narrow.untouched)
    by_shape = [wish for wish in settings.wishes if wish.about in measures.whole]
    forms = forms_of(settings, measures, job, space)
    reachable = [(form.measures, form.space) for form in forms] or [(measures, space)]
    check_reachable(by_shape, reachable)  # said before anything is measured
    made = 1 + max(settings.rivals, 2 * len(settings.zeros))  # with zeros as they are, and without them
    need = bytes_of_pieces(job, space) + made * inputs.checkpoint.bytes_on_disk
    check_room(workspace.out, need, sum(file.stat().st_size for file in levels.glob("*/*")))
    with monitor.stage("cut levels", inputs.checkpoint.layers) as step:
        write_pieces(job._replace(step=step), space, levels)
        workspace.worth_keeping()
    with ExitStack() as stack:
        if cluster is not None:
            each, at_once = as_tasks(settings, levels, cluster), AT_ONCE
            roughly = as_tasks(settings, levels, cluster, few=True)
        else:
            with monitor.stage("untouched model", inputs.checkpoint.layers) as step:
                against = None if narrow is None else narrow.against
                trials = stack.enter_context(Trials.of(job._replace(step=step), levels, workspace.work, against))
            each, roughly, at_once = one_by_one(trials.evaluate), one_by_one(trials.roughly), 1
        evaluate, alone = _beyond_nothing(Remembered.of(each, journal, key), narrow)
        of_pieces, _ = _beyond_nothing(Remembered.of(roughly, journal, f"{key}-alone"), narrow)
        with monitor.stage("each piece alone", len(measured_pieces(space))) as step:
            costs = costs_of(space, of_pieces, step, at_once)
        watch = Stopwatch.of(job, space, monitor, journal) if times(settings) else None
        ready = Ready(job, settings, space, costs, evaluate, over, at_once=at_once, watch=watch)
        wishes = [wish for wish in settings.wishes if wish.of_cost]
        if forms:
            folders, untouched = (levels, workspace.work), Against(inputs.streamed, trials.before[-1])
            return _by_form(ready, wishes, forms, untouched, folders, journal, monitor)
        with monitor.stage("candidates", settings.trials) as step:
            ready = replace(ready, step=step)
            if wishes:
                found = _within(ready, wishes, measures).from_others()
                return replace(found.above(alone), narrow=narrow)
            return _front(ready, measures).from_others()


def _beyond_nothing(evaluate: Evaluate, narrow: Narrow | None) -> tuple[Evaluate, float]:
    """What candidates lose beyond what the model does in which they are looked for, and what that one does."""
    if narrow is None:
        return evaluate, 0.0
    [alone] = evaluate([()])
    return partial(beyond, evaluate, alone), alone


def forms_of(settings: SearchSettings, measures: Measures, job: Job, space: Space) -> list[Form]:
    """The forms in which the whole model may be stored, that which takes most first; none where nothing is said.

    Raises:
        InputError, UnsupportedModelError: the model can't be stored so.
    """
    experts = job.streamed.checkpoint.family.experts is not None
    if settings.zeros and experts and any(wish.about == "memory" for wish in settings.wishes):
        raise InputError("experts run with their zeros in memory; wish for size instead, or leave zeros out")
    if settings.precision:
        return number_formats(settings.precision, measures, job, space)
    return zero_forms(settings.zeros, measures, job, space) if settings.zeros else []


def _by_form(
    ready: Ready,
    wishes: Sequence[Wish],
    forms: Sequence[Form],
    against: Against,
    folders: tuple[Path, Path],
    journal: Journal,
    monitor: Monitor,
) -> Found:
    """The best candidate in the best form; each has an equal part of the trials."""
    each = replace(ready, settings=ready.settings.of_each_form())

    @contextmanager
    def measured_in(form: Form) -> Iterator[Evaluate]:
        if form.trials is None:
            yield ready.evaluate
            return
        with ExitStack() as stack:
            with monitor.stage(f"model, {stored(form.name)}", against.streamed.checkpoint.layers) as step:
                trials = stack.enter_context(form.trials(*folders, against, step))
            yield Remembered.of(one_by_one(trials.evaluate), journal, f"-{form.name}")

    def within(form: Form, evaluate: Evaluate) -> Found:
        costs = {piece: ready.costs[piece] for piece in form.space.saves}
        watch = None if ready.watch is None else ready.watch.without(form.zeros)
        own = replace(each, space=form.space, costs=costs, evaluate=evaluate, watch=watch)
        with monitor.stage(f"candidates, {stored(form.name)}", each.settings.trials) as step:
            return _within(replace(own, step=step), wishes, form.measures).from_others()

    return best_form(wishes, forms, measured_in, within, ready.over)


def _within(ready: Ready, wishes: Sequence[Wish], measures: Measures) -> Found:
    """The best candidate that keeps the wishes; where they are about time, timed as it is and corrected once."""
    factors, watch = dict.fromkeys(TIMES, 1.0), ready.watch
    tried: list[Tried] = []
    looked: list[TimedCandidate] = []
    for round_ in range(3):
        now = measures if watch is None else watch.measures(measures, ready.space, factors)
        limits = limits_of(wishes, now, ready.space)
        if not limits:
            timed = () if watch is None else (watch.look_at((), now),)
            return Found(ready.space, now, ready.costs, (Tried((), 0.0, 0.0),), (), timed)
        tried += ready.rounds(limits, ready.settings.trials if round_ == 0 else ready.settings.trials // 2, tried)
        kept = [
            one for one in tried if all(w.held(now.left(w.about, one.candidate), now.whole[w.about]) for w in wishes)
        ]
        if not kept:
            raise InputError(f"wishes {', '.join(w.text for w in wishes)}: nothing keeps all at once; ask for less")
        best = min(kept, key=lambda one: one.measured).candidate
        found = Found(ready.space, now, ready.costs, tuple(tried), best, tuple(looked))
        rivals = finalists(kept, ready.space, ready.settings.rivals) if ready.settings.rivals > 1 else []
        if watch is None:
            return replace(found, finalists=tuple(rivals))
        looked.append(watch.look_at(best, now))
        found = replace(found, timed=tuple(looked))
        if round_ == 2 or ready.over() or not watch.corrected(factors, looked[-1], wishes):
            return _timed_finalists(watch, found, rivals, wishes)
    raise AssertionError("the last round returns")


def _timed_finalists(watch: Stopwatch, found: Found, rivals: Sequence[Candidate], wishes: Sequence[Wish]) -> Found:
    """With those finalists that are as fast as was wished for; the best candidate is one whatever it is."""
    looked, fast = list(found.timed), list(rivals[:1])
    for candidate in rivals[1:]:
        looked.append(watch.look_at(candidate, found.measures))
        if fast_enough(looked[-1], wishes):
            fast.append(candidate)
    return replace(found, timed=tuple(looked), finalists=tuple(fast))


def _front(ready: Ready, measures: Measures) -> Found:
    """Candidates at several sizes, and at several speeds where those are known."""
    watch = ready.watch
    now = measures if watch is None else watch.measures(measures, ready.space, dict.fromkeys(TIMES, 1.0))
    abouts = ["params"] if watch is None else ["params", TIMES[0]]
    each = max(2, ready.settings.trials // (len(FRONT) * len(abouts)))
    tried: list[Tried] = []
    for share in FRONT:
        for about in abouts:
            wish = Wish(f"{about}={share}x", about, share, True)
            try:
                limits = limits_of([wish], now, ready.space)
            except InputError:  # no candidate is so small
                continue
            if not (tried and ready.over()):
                tried += ready.rounds(limits, each, tried)
    if not tried:
        raise InputError(f"sites {', '.join(ready.space.kinds)}: nothing of them may go; allow more sites")
    return Found(ready.space, now, ready.costs, tuple(tried))
