"""General text beside the calibration text, where a repair would learn that by heart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from secateur.config.aim import general_of_run
from secateur.data.batches import Calibration
from secateur.errors import ResourceError
from secateur.model.checkpoint import Checkpoint
from secateur.pipeline import calibration as module
from secateur.pipeline.calibration import calibration_for, with_general
from tests.small import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.jsonl"
    file.write_text(json.dumps({"input_ids": [i % 200 for i in range(16 * 30)]}))
    return file


@pytest.fixture
def drawn(model: Path, text: Path) -> Calibration:
    return calibration_for(Checkpoint.open(model), str(text), 16, 16, 0)


def test_the_users_sequences_are_all_there_and_some_others_between_them(model: Path, drawn: Calibration) -> None:
    both = with_general(Checkpoint.open(model), drawn, 0.125, 0)
    rows = {tuple(row) for row in both.tokens.tolist()}
    own = {tuple(row) for row in drawn.tokens.tolist()}
    assert own < rows
    assert (both.general, len(both.tokens), len(rows - own)) == (2, 18, 2)
    assert torch.equal(both.held_out, drawn.held_out)  # judged on the user's text
    assert (both.source, both.sha256 != drawn.sha256) == (drawn.source, True)
    assert torch.equal(with_general(Checkpoint.open(model), drawn, 0.125, 0).tokens, both.tokens)


@pytest.mark.parametrize("why", ["no tokenizer", "vocabulary", "sources"])
def test_where_it_cannot_be_had_a_note_says_so(
    why: str, model: Path, drawn: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(model)
    if why == "no tokenizer":
        checkpoint = Checkpoint.open(save_tiny(tmp_path / "bare", tokenizer=False))
    elif why == "vocabulary":
        real = module.general_text(checkpoint, 2, 16, 0)
        unknown = checkpoint.tokenizer().unk_token_id or 0
        strange = replace(real, tokens=torch.full_like(real.tokens, unknown))
        monkeypatch.setattr(module, "general_text", lambda *_: strange)
        tokenizer = checkpoint.tokenizer()
        tokenizer.unk_token = tokenizer.convert_ids_to_tokens(unknown)
        monkeypatch.setattr(Checkpoint, "tokenizer", lambda _: tokenizer)
    else:

        def nothing(*_: Any) -> Calibration:
            raise ResourceError("no sources")

        monkeypatch.setattr(module, "load_corpus", nothing)
    alone = with_general(checkpoint, drawn, 0.125, 0)
    assert torch.equal(alone.tokens, drawn.tokens)
    assert alone.notes[-1].startswith("no general text beside the calibration text: ")


@pytest.mark.parametrize(
    ("settings", "ratio"),
    [
        ({}, 0.125),
        ({"quality": "best"}, 0.125),
        ({"quality": "fast"}, 0.0),
        ({"method": "wanda"}, 0.0),  # as published
        ({"method": "wanda", "general_text": 0.5}, 0.5),
        ({"general_text": 0}, 0.0),
        ({"calibrate": "stdlib:code"}, 0.0),
        ({"calibrate": "self"}, 0.0),
        ({"calibrate": "a.jsonl:0.7,b.jsonl:0.3"}, 0.0),  # a mixture is told as a whole
    ],
)
def test_how_much_there_is(settings: dict[str, Any], ratio: float) -> None:
    asked = {"model": "embedded", "sparsity": 0.5, "calibrate": "a.jsonl", **settings}
    assert general_of_run(secateur.make_recipe(asked)) == ratio


def test_a_report_says_how_much_of_the_calibration_it_was(
    quick: None, model: Path, text: Path, tmp_path: Path
) -> None:
    asked = {"model": str(model), "sites": "channel", "sparsity": 0.5, "calibrate": str(text), "length": 16}
    recipe = secateur.make_recipe({**asked, "samples": 16, "evaluate": "none", "speed": False})
    report = secateur.prune(recipe, tmp_path / "out", quiet=True)
    assert (report["calibration"]["samples"], report["calibration"]["general"]) == (18, 2)
    card = (tmp_path / "out" / "README.md").read_text()
    assert ", 2 of them from Python's own text" in card
