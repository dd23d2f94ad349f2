"""The journal: what it remembers, what it takes for finished, and what it makes of a line that a kill cut short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from secateur.cut.block import BlockCuts
from secateur.cut.units import UnitCut
from secateur.cut.weights import WeightCut
from secateur.errors import InputError
from secateur.model.sites import Cut, Site
from secateur.reconstruct.tune import Tuned
from secateur.workspace.folder import BLOCKS, JOURNAL, block_file
from secateur.workspace.journal import Journal, last_finished

TOLD = {"model": "m", "sparsity": 0.5, "sites": ("weight",), "checkpoint": "a" * 64, "plan": None}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work area whose run was killed after blocks 0 and 1."""
    (tmp_path / BLOCKS).mkdir()
    journal = Journal(tmp_path, TOLD)
    journal.start()
    journal.note("layers", {"kept": [0, 1, 3], "scores": {"2": 0.5}})
    for index in (0, 1):
        save_file({"w": torch.full((3,), float(index))}, block_file(tmp_path / BLOCKS, index))
        journal.block(index, {"added": index})
    return tmp_path


def resumed(work: Path) -> Journal:
    journal = Journal(work, TOLD)
    assert journal.resume()
    return journal


def test_a_resumed_journal_remembers(work: Path) -> None:
    journal = resumed(work)
    assert journal.noted("layers") == {"kept": [0, 1, 3], "scores": {"2": 0.5}}
    assert journal.noted("else") is None
    records = [journal.finished(index) for index in range(3)]
    assert [r and r["added"] for r in records] == [0, 1, None]
    assert all(journal.intact(r) for r in records if r is not None)
    assert last_finished(work) == "layer 1"


@pytest.mark.parametrize("cut", [1, 2, 9, 60, 200])
def test_a_torn_last_line_is_no_line(work: Path, cut: int) -> None:
    text = (work / JOURNAL).read_text()
    last = text.splitlines(keepends=True)[-1]
    (work / JOURNAL).write_text(text[: -min(cut, len(last))] if cut > 1 else text[:-1])
    journal = resumed(work)
    # Without its newline alone, the line is whole.
    assert (journal.finished(1) is not None) == (cut == 1)
    assert journal.finished(0) is not None
    journal.block(1, {"added": 7})
    again = resumed(work).finished(1)
    assert again is not None
    assert again["added"] == 7
    assert all(json.loads(line) for line in (work / JOURNAL).read_text().splitlines())


@pytest.mark.parametrize("text", ["", '{"told": {"mo', "[1]\n", '{"block": 0}\n', "\x00\xff garbage"])
def test_a_journal_that_had_not_begun_is_begun(tmp_path: Path, text: str) -> None:
    (tmp_path / BLOCKS).mkdir()
    (tmp_path / JOURNAL).write_text(text)
    journal = Journal(tmp_path, TOLD)
    assert not journal.resume()
    journal.start()
    assert last_finished(tmp_path) is None
    assert resumed(tmp_path).finished(0) is None


def test_no_journal_is_no_run(tmp_path: Path) -> None:
    assert not Journal(tmp_path, TOLD).resume()
    assert last_finished(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sparsity": 0.6}, "sparsity was 0.5, is 0.6"),
        ({"sites": ["channel"]}, r'sites was \["weight"\], is \["channel"\]'),
        ({"checkpoint": "b" * 64}, "checkpoint has changed"),
        ({"model": "n", "plan": "p"}, 'model was "m", is "n"; plan was null, is "p"'),
        ({"new": 1}, "new was null, is 1"),
    ],
)
def test_another_run_is_refused_with_what_differs(work: Path, change: dict[str, object], said: str) -> None:
    before = (work / JOURNAL).read_bytes()
    with pytest.raises(InputError, match=f"can't resume, the run differs: {said}; use --overwrite"):
        Journal(work, TOLD | change).resume()
    assert (work / JOURNAL).read_bytes() == before
    assert resumed(work).finished(1) is not None


@pytest.mark.parametrize("damage", ["lost", "cut", "flipped", "exchanged"])
def test_a_damaged_block_is_not_finished(work: Path, damage: str) -> None:
    file = block_file(work / BLOCKS, 1)
    content = file.read_bytes()
    if damage == "lost":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "flipped":
        file.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    else:
        file.write_bytes(block_file(work / BLOCKS, 0).read_bytes())
    journal = resumed(work)
    record = journal.finished(1)
    assert record is not None
    assert not journal.intact(record)
    file.write_bytes(content)
    journal.block(1, {"added": 1})
    again = resumed(work).finished(1)
    assert again is not None
    assert resumed(work).intact(again)


def test_cuts_come_back_as_they_were() -> None:
    site = Site("channel", 3, 4, (Cut("a.weight", 0), Cut("b.weight", 1, 2)), "b", 2, 24)
    unit = UnitCut(site, (0, 2, 3), (0.1, 1 / 3, 2.0, 3e-9), 0.25, 0.125, 1e-3)
    weight = WeightCut("b", (8, 4), 0.5, None, None)
    for tuned in (None, Tuned(0.5, 0.25, 0.5, 0.3, 75)):
        done = BlockCuts(3, {"mlp": 3}, [unit], [weight], tuned, 12)
        assert BlockCuts.from_json(json.loads(json.dumps({"block": 3, **done.to_json()}))) == done
