"""The best few candidates as models: what is compared, and that the best of them is what is delivered."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from secateur.config.searching import SearchSettings, make_search
from secateur.errors import InputError
from secateur.search import compared as room
from secateur.search.compared import rehearsal
from secateur.search.finalists import finalists
from secateur.search.make import Made
from secateur.search.refine import Tried
from secateur.search.search import search
from secateur.search.space import Amounts, Candidate, Piece, Space
from tests.search.text import write_text
from tests.small import save_tiny


def test_the_best_of_the_other_sort_is_among_them() -> None:
    wide: list[Candidate] = [(Piece(0, "channel", level), Piece(1, "ffn", 1)) for level in (5, 6, 7)]
    deep: list[Candidate] = [(Piece(2, "layer", 1),), (Piece(1, "ffn", 1),)]
    pieces = sorted({piece for one in (*wide, *deep) for piece in one})
    sizes = {"channel": 90.0, "ffn": 60.0, "layer": 100.0}
    space = Space({p: Amounts(sizes[p.kind], 0, 0) for p in pieces}, {}, Amounts(500, 0, 0), 3)
    costs = dict(zip([*wide, *deep], (0.3, 0.2, 0.4, 2.0, 3.0), strict=True))
    tried = [Tried(one, 0.0, cost) for one, cost in costs.items()]
    assert finalists(tried, space, 3) == [wide[1], deep[0], wide[0]]
    assert finalists(tried, space, 1) == [wide[1]]
    assert finalists(tried[:3], space, 5) == [wide[1], wide[0], wide[2]]
    assert finalists(tried[3:], space, 2) == deep
    assert finalists([], space, 2) == []


def test_what_contradicts_itself() -> None:
    told = {"model": "m", "want": "params=0.5x"}
    assert make_search(told).rivals == 1
    assert make_search({**told, "recover_steps": 5}).rivals == 3
    for changes, says in (
        ({"recover_steps": 5, "finalists": 1}, "finalists is 1; give 2 or more"),
        ({"finalists": 2, "evaluate": "none"}, "evaluate is none"),
        ({"finalists": 2, "want": "perplexity<=1.1x"}, "add a wish such as params=0.75x"),
    ):
        with pytest.raises(InputError, match=says):
            make_search({**told, **changes})


def test_a_longer_training_follows_a_short_one() -> None:
    told: dict[str, Any] = {"model": "m", "want": "params=0.5x", "recover_steps": 5}
    alone = rehearsal(make_search(told))
    assert alone.recover is not None
    assert (alone.recover.steps, alone.speed) == (5, True)
    first = rehearsal(make_search({**told, "recover": {"how": "full", "steps": 900}}))
    assert first.recover is not None
    assert (first.recover.how, first.recover.steps, first.speed) == ("full", 5, False)
    plain = make_search({"model": "m", "want": "params=0.5x", "finalists": 2})
    assert rehearsal(plain) is plain


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> SearchSettings:
    folder = tmp_path_factory.mktemp("finalists")
    save_tiny(folder / "model", num_hidden_layers=3, context=64)
    write_text(folder)
    told = {"model": str(folder / "model"), "calibrate": str(folder / "text.jsonl"), "samples": 8, "length": 32}
    told |= {"speed": False, "general_text": 0, "trials": 6, "explain": False, "device": "cpu", "quality": "fast"}
    training = {"steps": 900, "length": 16, "batch": 2, "learning_rate": 1e-3, "how": "full"}
    return make_search({**told, "sites": "channel,layer", "want": "params=0.75x", "recover": training})


def test_the_best_after_a_short_training_is_trained_for_long(
    settings: SearchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made, with which settings, where the second candidate comes out best."""
    first, second = (Piece(0, "channel", 1),), (Piece(1, "layer", 1),)
    made: list[tuple[Candidate, int]] = []

    def pruned(told: SearchSettings, inputs: Any, found: Any, candidate: Candidate, *_: Any) -> Made:
        assert told.recover is not None
        made.append((candidate, told.recover.steps))
        sides = {"before": {"perplexity": 8.0}, "after": {"perplexity": 9.0 if candidate == second else 10.0}}
        report: Any = {"evaluation": sides}
        return Made(candidate, Path(), report)

    monkeypatch.setattr(room, "pruned", pruned)
    anything: Any = SimpleNamespace(finalists=(first, second))
    best, found = room.best_of(settings.model_copy(update={"recover_steps": 2}), anything, anything, anything, True)
    assert found == {first: 10.0, second: 9.0}
    assert best.candidate == second
    assert made == [(first, 2), (second, 2), (second, 900)]


def test_the_best_after_a_short_training_is_delivered(settings: SearchSettings, tmp_path: Path) -> None:
    short = {"recover_steps": 2, "finalists": 2, "recover": None}
    assert settings.recover is not None
    told = make_search({**settings.model_dump(exclude_unset=True), **short, "length": 32})
    quick = settings.recover.model_copy(update={"steps": 2})
    with pytest.MonkeyPatch.context() as patch:  # the same training as in a section, without the range test of rates
        patch.setattr(room, "make_recovery", lambda values: quick)
        found = search(told, tmp_path / "out", quiet=True)
    first, other = found["finalists"]
    [chosen] = [one for one in found["finalists"] if one["chosen"]]
    assert chosen["perplexity"] == min(first["perplexity"], other["perplexity"])
    [candidate] = [one for one in found["candidates"] if one["chosen"]]
    assert (candidate["pieces"], candidate["measured"]) == (chosen["pieces"], chosen["kl"])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["recovery"]["steps"] == 2
    assert report["evaluation"]["after"]["perplexity"] == chosen["perplexity"]
    page = (tmp_path / "out" / "search.html").read_text(encoding="utf-8")
    assert "Compared as models" in page
    assert page.count(">chosen</td>") == 1
