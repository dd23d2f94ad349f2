"""Tasks in every run: before and after in the report, the page, the card and the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import secateur
from secateur.errors import InputError
from secateur.evaluation.tasks import evaluate_tasks
from secateur.evaluation.tasks.suffered import suffered
from secateur.report.terminal.run import print_report
from tests.small import save_tiny

ROWS = [{"query": f"{n} and", "choices": ["the moon", "a hat", "this"], "gold": n % 3} for n in range(16)]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (tmp_path / "text.jsonl").write_text('{"text": "The thin thief thinks that the moth is theirs."}\n' * 40)
    return file


def told(model: Path, asked: Path, **more: Any) -> dict[str, Any]:
    text = str(asked.parent / "text.jsonl")
    return {
        "model": str(model), "sites": "channel", "sparsity": 0.5, "calibrate": text, "evaluate": text, "samples": 8,
        "length": 32, "quality": "fast", "speed": False, "tasks": str(asked), "device": "cpu", **more,
    }  # fmt: skip


def test_a_run_with_tasks(tmp_path: Path, asked: Path) -> None:
    model, out = save_tiny(tmp_path / "m"), tmp_path / "out"
    recover = {"how": "full", "steps": 2, "batch": 2, "length": 32, "learning_rate": 1e-3}
    report = secateur.prune(secateur.make_recipe(told(model, asked, recover=recover)), out, quiet=True)
    alone = evaluate_tasks(out, str(asked), model, "cpu")
    found = json.loads((out / "report.json").read_text())["tasks"]
    assert found == json.loads(json.dumps(report["tasks"]))
    assert list(found["before"]["asked"]["metrics"]) == ["acc", "acc_norm"]
    assert found["after"]["asked"]["metrics"] == alone["tasks"]["asked"]["metrics"]
    assert found["before"]["asked"]["metrics"] == alone["reference"]["tasks"]["asked"]["metrics"]
    assert found["differences"] == alone["differences"]
    assert found["pruned"]["asked"]["items"] == 16
    assert {row["name"] for row in found["suffered"]} == {"asked", str(asked.parent / "text.jsonl")}
    (text,) = report["evaluation"]["after"]["sets"].values()
    assert text["difference_stderr"] >= 0
    for page in ("report.html", "README.md"):
        shown = (out / page).read_text()
        assert "What suffered first" in shown
        assert "acc_norm" in shown
    printed = io.StringIO()
    print_report(report, out, Console(file=printed, width=140))
    assert "95 % interval" in printed.getvalue()
    again = tmp_path / "again"
    recovery = secateur.make_recovery({"data": str(asked.parent / "text.jsonl"), **recover})
    how: Any = {"tasks_limit": 4, "device": "cpu", "speed": False, "quiet": True}
    after = secateur.recover(out, again, recovery, tasks=str(asked), **how)
    assert after["tasks"]["after"]["asked"]["items"] == 4
    assert set(after["tasks"]) >= {"before", "pruned", "after"}


def test_a_run_that_is_aimed_at_a_task(tmp_path: Path, asked: Path) -> None:
    model = save_tiny(tmp_path / "m")
    aimed = told(model, asked, method="taylor", tasks=None, for_task=str(asked), keep_general=0.25, samples=4)
    found = {}
    for name, more in (("local", {}), ("sensitivity", {"allocate": "sensitivity"}), ("general", {"for_task": None})):
        recipe = secateur.make_recipe({**aimed, **more})
        found[name] = secateur.prune(recipe, tmp_path / name, quiet=True)
    text = asked.parent / "text.jsonl"
    for name in ("local", "sensitivity"):
        report = found[name]
        assert report["calibration"]["source"] == f"task:{asked}@even:0.75,{text}:0.25"
        judged = report["tasks"]["before"]["asked"]
        assert (judged["data"], judged["items"]) == (f"{asked}@odd", 8)
    assert "tasks" not in found["general"]
    plans = [secateur.Plan.read(tmp_path / name / "plan.json") for name in ("local", "general")]
    assert plans[0].entries != plans[1].entries  # other channels matter for the task


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"for_task": "arc_easy"}, "for_task arc_easy: give one .jsonl file"),
        ({"for_task": "x.jsonl", "calibrate": "self"}, "'self' isn't one"),
        ({"for_task": "x.jsonl", "calibrate": "a.txt,b.txt"}, "keeps one general text"),
        ({"for_task": "x.jsonl", "keep_general": 1.0}, "keep_general = 1.0"),
        ({"for_task": "gone.jsonl"}, "'gone.jsonl' does not exist"),
    ],
)
def test_what_no_run_can_be_aimed_at(tmp_path: Path, asked: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        secateur.prune(
            secateur.make_recipe(told(save_tiny(tmp_path / "m"), asked, **more)), tmp_path / "o", quiet=True
        )


def test_compressed_weights_answer_alike(tmp_path: Path, asked: Path) -> None:
    recipe = told(save_tiny(tmp_path / "m"), asked, sites="weight", method="wanda", tasks=None, evaluate="none")
    secateur.prune(secateur.make_recipe(recipe), tmp_path / "zeros", quiet=True)
    secateur.compress(tmp_path / "zeros", tmp_path / "packed")
    found = evaluate_tasks(tmp_path / "packed", str(asked), tmp_path / "zeros", "cpu")
    metrics = [side["tasks"]["asked"]["metrics"] for side in (found, found["reference"])]
    assert metrics[0] == metrics[1]


def test_tasks_that_cant_be_used_stop_a_run_before_it_writes(tmp_path: Path, asked: Path) -> None:
    model = save_tiny(tmp_path / "m")
    asked.write_text('{"query": "x"}')
    with pytest.raises(InputError, match="line 1 is no such item"):
        secateur.prune(secateur.make_recipe(told(model, asked)), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_what_suffered_first() -> None:
    def figures(value: float, chance: float, stderr: float = 0.01) -> Any:
        return {"metric": "acc", "metrics": {"acc": {"value": value, "stderr": stderr}}, "chance": chance}

    def between(value: float) -> Any:
        return {"acc": {"difference": value, "stderr": 0.02, "better": 1, "worse": 5, "p": 0.2}}

    before = {"a": figures(0.6, 0.5), "b": figures(0.6, 0.25), "c": figures(0.51, 0.5)}
    after = {"a": figures(0.55, 0.5), "b": figures(0.53, 0.25), "c": figures(0.4, 0.5)}
    apart = {"a": between(-0.05), "b": between(-0.07), "c": between(-0.11)}
    texts: Any = ({"t": {"perplexity": 10.0}}, {"t": {"perplexity": 50.0, "difference_stderr": 0.1}})
    rows = suffered(before, after, apart, texts, 1000)
    assert [row["name"] for row in rows] == ["a", "t", "b", "c"]
    assert [row["loss"] for row in rows] == [
        pytest.approx(0.5),
        pytest.approx(0.3495, rel=1e-3),
        pytest.approx(0.2),
        None,
    ]
    assert rows[0]["high"] - rows[0]["low"] > 2 * 1.96 * 0.02 / 0.1  # the lead isn't known exactly either
    assert rows[1]["high"] == pytest.approx(0.3495 + 1.96 * 0.1 / 4.605, rel=1e-3)
