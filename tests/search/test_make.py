"""Which candidates are made where quality is limited, and what the command says of wishes that aren't held."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from secateur.cli import app as cli
from secateur.config.wishes import Wish, parse_wish
from secateur.errors import ResourceError
from secateur.report.schema.search import SearchReport
from secateur.report.terminal.search import print_search
from secateur.search.found import Found
from secateur.search.make import Made, judged, kept, smallest
from secateur.search.programme import scipy_optimize
from secateur.search.refine import Tried
from secateur.search.space import Amounts, Candidate, Piece, Space
from secateur.search.wanted import Measures
from tests.browser.made import searched
from tests.search.text import write_text
from tests.small import save_tiny


def found() -> Found:
    """Ten candidates: the more goes, the farther from the untouched model."""
    pieces = [Piece(0, "channel", level) for level in range(1, 11)]
    saves = {piece: 5.0 * piece.level for piece in pieces}
    space = Space(
        {p: Amounts(saves[p], 0, 0) for p in pieces}, {p: p.level / 11 for p in pieces}, Amounts(100, 0, 0), 1
    )
    tried = tuple(Tried((piece,), 0.0, 0.002 * piece.level**2) for piece in pieces)
    return Found(space, Measures({"params": 100.0}, {"params": saves}), {}, tried)


def maker(harm: float, done: list[int], right: float = 0.8) -> Any:
    """A repair after which `harm` times the divergence is left, in the logarithm of the perplexity."""

    def made(candidate: Candidate) -> Made:
        [piece] = candidate
        done.append(piece.level)
        lost = harm * 0.002 * piece.level**2
        tasks = {
            side: {"asked": {"data": "asked.jsonl", "metric": "acc", "metrics": {"acc": {"value": value}}}}
            for side, value in (("before", right), ("after", right * math.exp(-lost)))
        }
        sides = {"before": {"perplexity": 10.0}, "after": {"perplexity": 10 * math.exp(lost)}}
        report: Any = {"evaluation": sides, "tasks": tasks}
        return Made(candidate, Path(str(piece.level)), report)

    return made


@pytest.mark.parametrize(
    ("wish", "harm", "best"),
    [
        ("perplexity<=1.1x", 1.0, 6),  # exp(0.072) = 1.075; a level more would be 1.103
        ("perplexity<=1.1x", 0.5, 9),  # the repair halves it, which the first model tells
        ("perplexity<=1.1x", 2.0, 4),
        ("perplexity<=11", 1.0, 6),
        ("task:some/asked.jsonl>=0.9x", 1.0, 7),
        ("task:asked.jsonl>=0.72", 0.5, 10),
    ],
)
def test_the_smallest_that_keeps_the_limit_is_made(wish: str, harm: float, best: int) -> None:
    done: list[int] = []
    made = smallest(found(), [parse_wish(wish)], maker(harm, done))
    assert kept(parse_wish(wish), made.report)
    assert made.candidate[0].level == best
    assert len(done) <= 3


def test_where_none_keeps_it_the_least_harmed_is_made() -> None:
    done: list[int] = []
    limit = parse_wish("perplexity<=1.0001x")
    made = smallest(found(), [limit], maker(1.0, done))
    assert made.candidate[0].level == 1
    assert not kept(limit, made.report)
    assert judged(parse_wish("task:other.jsonl>=0.5"), made.report) == (None, None)
    both = [parse_wish("perplexity<=1.1x"), parse_wish("task:asked.jsonl>=0.97x")]
    assert smallest(found(), both, maker(1.0, done)).candidate[0].level == 3
    assert isinstance(both[0], Wish)


def test_without_scipy_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ResourceError, match=r"search needs scipy; install it: pip install .*\[search\]"):
        scipy_optimize()


def test_the_command_ends_with_1_where_a_wish_isnt_held(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny(tmp_path / "model", context=64)
    write_text(tmp_path, 60)
    rows = [json.dumps({"query": "the ", "choices": ["this", "that"], "gold": n % 2}) for n in range(8)]
    (tmp_path / "asked.jsonl").write_text("\n".join(rows), encoding="utf-8")
    wishes = ["params=0.9x", "perplexity<=1x", f"task:{tmp_path / 'asked.jsonl'}>=0.1x"]
    words = ["search", str(tmp_path / "model"), *(word for wish in wishes for word in ("--want", wish))]
    words += ["--calibrate", str(tmp_path / "text.jsonl"), "--samples", "8", "--length", "32", "--trials", "4"]
    words += ["--no-speed", "--no-explain", "--general-text", "0", "--json", "--quality", "fast"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--out", str(tmp_path / "out")])
    assert ended.value.code == 1
    shown: SearchReport = json.loads(capsys.readouterr().out)
    assert [wish["held"] for wish in shown["wishes"]] == [True, False, True]
    assert shown["limited_by"] == "perplexity<=1x: not held"
    assert shown["wishes"][2]["whole"] == 0.5
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    told = searched(layers=24)
    print_search(told, Path("out"))
    shown = capsys.readouterr().out
    words = ("latency=0.7x", "NOT held", "35.2 ms", "ffn         ", "agree in rank by 0.93")
    for word in (
        *words,
        "as q4_0)",
        "q4_0: 76 MB with nothing gone",
        "candidate 0.057, perplexity 21.3 after the repair, chosen",
    ):
        assert word in shown
    print_search({**told, "wishes": []}, Path("out"))
    assert "secateur prune MODEL --plan FILE" in capsys.readouterr().out
