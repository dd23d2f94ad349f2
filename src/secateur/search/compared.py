"""Candidates as models: each is made, perhaps trained for a while, and judged; the best is the result."""

from __future__ import annotations

from dataclasses import replace

from secateur.config.searching import SearchSettings
from secateur.config.training import make_recovery
from secateur.config.wishes import PERPLEXITY, TASK, Wish
from secateur.errors import InputError
from secateur.pipeline.inputs import Inputs
from secateur.search.forms import chosen
from secateur.search.found import Found
from secateur.search.make import Made, judged, pruned
from secateur.search.space import Candidate
from secateur.workspace.folder import Workspace

_JUDGE = Wish(f"{PERPLEXITY}<=1x", PERPLEXITY, 1.0, True)


def rehearsal(settings: SearchSettings) -> SearchSettings:
    """The settings that finalists are made with: a short training where one is asked for, and nothing but perplexity
    where the choice is made anew for a longer one."""
    if settings.recover_steps is None:
        return settings
    recover = (settings.recover or make_recovery({})).model_copy(update={"steps": settings.recover_steps})
    short: dict[str, object] = {"recover": recover}
    if settings.recover is not None:
        short |= {"want": (), "tasks": None, "export": None, "prompts": None, "speed": False, "explain": False}
    return settings.model_copy(update=short)


def best_of(
    settings: SearchSettings, inputs: Inputs, found: Found, workspace: Workspace, quiet: bool
) -> tuple[Made, dict[Candidate, float]]:
    """The finalist of least perplexity, as the settings make it; and what each of them has, compared alike.

    Raises:
        InputError: the models have no perplexity.
    """
    short, done, perplexities = rehearsal(settings), dict[Candidate, Made](), dict[Candidate, float]()
    for candidate in found.finalists:
        done[candidate] = pruned(short, inputs, found, candidate, workspace, quiet)
        _, after = judged(_JUDGE, done[candidate].report)
        if after is None:
            raise InputError("finalists are compared by perplexity, and none was measured; give --evaluate FILE")
        perplexities[candidate] = float(after)
    best = min(perplexities, key=perplexities.__getitem__)
    again = settings.recover_steps is not None and settings.recover is not None
    made = pruned(settings, inputs, found, best, workspace, quiet) if again else done[best]
    return made, perplexities


def best_of_forms(
    settings: SearchSettings, inputs: Inputs, found: Found, workspace: Workspace, quiet: bool
) -> tuple[Found, Made]:
    """What is found in the form whose best candidate has the least perplexity as a model, and that model.

    They are compared without a training, and before it. Where models have no perplexity, or it isn't measured,
    divergences decide.
    """
    untrained = settings.model_copy(
        update={
            "want": tuple(wish.text for wish in settings.wishes if wish.about != TASK),
            **dict.fromkeys(("recover", "tasks", "prompts")),
        }
    )
    perplexities, best, least = dict[str, float | None](), found, float("inf")
    for one in (found, *found.others):
        assert one.form is not None
        assert one.best is not None
        value = judged(_JUDGE, pruned(untrained, inputs, one, one.best, workspace, quiet).report)[1]
        perplexities[one.form.name] = value
        if value is None:
            best = found
            break
        if value < least:
            best, least = one, value
    assert best.form is not None
    assert best.best is not None
    made = pruned(settings, inputs, best, best.best, workspace, quiet)
    return replace(best, formats=chosen(found.formats, best.form.name, perplexities), others=()), made
