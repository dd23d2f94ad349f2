"""Results side by side, from what their reports say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur.analysis.compare import compare
from secateur.cli import app as cli
from secateur.errors import InputError
from secateur.report.compare import lines, render

Write = Callable[..., Path]


def figures(perplexity: float, size: int, decode: float) -> dict[str, Any]:
    return {
        "perplexity": perplexity,
        "sets": {"text": {"perplexity": perplexity, "data_sha256": "ab"}},
        "parameters": size,
        "nonzero_parameters": size,
        "bytes_on_disk": 2 * size,
        "decode_tokens_per_s": decode,
        "prefill_tokens_per_s": None,
    }


def on_tasks(value: float) -> dict[str, Any]:
    metrics = {"acc": {"value": value, "stderr": 0.01}}
    return {
        name: {"metric": "acc", "metrics": metrics, "data_sha256": "cd", "items": 10, "chance": 0.5}
        for name in ("one", "two")
    }


@pytest.fixture
def write(tmp_path: Path) -> Write:
    (tmp_path / "dense").mkdir()

    def call(name: str, perplexity: float, size: int, decode: float, acc: float, **recipe: Any) -> Path:
        out = tmp_path / name
        out.mkdir()
        report = {
            "model": {"path": str(tmp_path / "dense")},
            "recipe": {"sparsity": 0.5, "recover": None, **recipe},
            "evaluation": {"before": figures(10, 100, 50), "after": figures(perplexity, size, decode)},
            "tasks": {"before": on_tasks(0.8), "after": on_tasks(acc)},
            "parameters": {"before": 100, "after": size, "nonzero_before": 100, "nonzero_after": size},
            "samples": [{"prompt": "Once", "before": "Once upon", "after": f"Once {name} <b>"}],
        }
        (out / "report.json").write_text(json.dumps(report), encoding="utf-8")
        return out

    return call


def test_one_table_over_several_results(tmp_path: Path, write: Write) -> None:
    small, large = write("small", 20, 50, 90, 0.6, sparsity=0.7), write("large", 12, 75, 70, 0.75)
    beaten = write("beaten", 25, 75, 60, 0.55, recover={"steps": 3})
    found = compare([small, large / "report.json", beaten], tmp_path / "dense")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [result["name"] for result in found["results"]] == ["dense", "small", "report.json", "beaten"]
    assert [result["pareto"] for result in found["results"]] == [True, True, True, False]
    assert found["judged_by"] == ["mean accuracy one two", "bytes_on_disk", "decode_tokens_per_s"]
    shown = {line[0]: line[1:] for line in lines(found)}
    assert shown["perplexity, text"] == ["10", "20 (2.00×)", "12 (1.20×)", "25 (2.50×)"]
    assert shown["one, acc"][1] == "60.00% ± 1.00 (-20.00)"
    assert shown["Size on disk"][1] == "100 bytes (0.50×)"
    assert found["recipes"]["sparsity"] == [None, 0.7, 0.5, 0.5]
    assert found["recipes"]["recover.steps"] == [None, None, None, 3]
    assert found["samples"][0]["texts"] == ["upon", "small <b>", "large <b>", "beaten <b>"]
    page = render(found)
    assert "small &lt;b&gt;" in page
    assert "default-src 'none'" in page


def test_what_was_measured_on_other_data_has_a_line_of_its_own(tmp_path: Path, write: Write) -> None:
    one, other = write("one", 20, 50, 90, 0.6), write("other", 20, 50, 90, 0.6)
    report = json.loads((other / "report.json").read_text())
    report["evaluation"]["after"]["sets"]["text"]["data_sha256"] = "xy"
    (other / "report.json").write_text(json.dumps(report))
    found = compare([one, other])
    assert [line[1:] for line in lines(found) if line[0] == "perplexity, text"] == [["20", "–"], ["–", "20"]]
    assert "measured on different data" in found["notes"][0]


def test_a_bench_beside_a_report(tmp_path: Path, write: Write) -> None:
    row = {"batch": 1, "context": 64, "decode_tokens_per_s": 30.0, "prefill_tokens_per_s": 300.0}
    forms = [
        {"name": "dense", "bytes_on_disk": 200, "rows": [row]},
        {"name": "compressed", "bytes_on_disk": 90, "rows": [{**row, "decode_tokens_per_s": 40.0}]},
        {"name": "broken", "error": "no"},
    ]
    (tmp_path / "bench.json").write_text(json.dumps({"forms": forms}), encoding="utf-8")
    found = compare([tmp_path / "bench.json", write("small", 20, 50, 90, 0.6)])
    shown = {line[0]: line[1:] for line in lines(found)}
    assert shown["Decode, tokens/s, batch 1, context 64"] == ["30", "40", "–", "–"]
    assert shown["Size on disk"] == ["200 bytes", "90 bytes", "–", "100 bytes"]


def test_a_compressed_folder_has_a_size(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"compression": {"bytes_after": 5}}', encoding="utf-8")
    assert compare([tmp_path])["results"][0]["values"] == {"bytes_on_disk": 5}


def test_what_is_no_result(tmp_path: Path, write: Write) -> None:
    with pytest.raises(InputError, match="no result; give a folder of prune"):
        compare([tmp_path / "nowhere"])
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(InputError, match="where an object should be"):
        compare([tmp_path / "x.json"])
    with pytest.raises(InputError, match="none of these results was pruned from it"):
        compare([write("small", 20, 50, 90, 0.6)], tmp_path / "elsewhere")


def test_damaged_reports_show_what_they_have(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"recipe": 3, "evaluation": {"after": {"sets": {"a": 1}}}, "tasks": [1]}')
    found = compare([tmp_path])
    assert found["results"][0]["values"] == {}
    assert found["results"][0]["pareto"] is False


def test_the_command(tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    words = ["compare", write("a", 20, 50, 90, 0.6), write("b", 12, 75, 70, 0.75), "--against", tmp_path / "dense"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, words), "--page", str(page)])
    assert not ended.value.code
    assert "mean accuracy" in capsys.readouterr().out
    assert "The same prompts" in page.read_text()
    with pytest.raises(SystemExit) as again:
        cli.main([*map(str, words), "--page", str(page)])
    assert again.value.code == 2
    assert "exists already" in capsys.readouterr().err
