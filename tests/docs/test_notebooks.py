"""Every cell of the notebooks runs, on the model in the package."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "prune-look-repair-serve",
            ["parameters  2,828,736 -> ", "recovered  perplexity ", "The for statement is used to"],
        ),
        ("a-new-criterion", ["magnitude ", "mine "]),
    ],
)
def test_every_cell_runs(
    name: str, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    names: dict[str, object] = {"__name__": "__main__"}
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        exec(compile(cell, f"{name}, cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    for words in said:
        assert words in printed
    states = re.findall(r"(pruned|recovered) +perplexity ([\d.]+)", printed)
    if states:
        assert float(dict(states)["recovered"]) < float(dict(states)["pruned"]), "the training shows"


def test_they_come_without_output() -> None:
    for file in FOLDER.glob("*.ipynb"):
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None
