"""The number format of an export beside everything else: bytes and divergences are those of the file that is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from secateur.config.searching import SearchSettings, make_search
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from secateur.search.prepared import opened
from secateur.search.search import search
from secateur.search.trial import evaluated
from secateur.system.monitor import Monitor
from tests.export.cases import with_tokenizer
from tests.search.interrupted import interrupted
from tests.search.text import write_text
from tests.small import save_tiny

gguf = pytest.importorskip("gguf", reason="the package gguf, of the extra gguf, isn't installed")
from secateur.export.gguf.rounded import Rounded  # noqa: E402 - needs the package

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> SearchSettings:
    """A model of fp32 with heads of 16 rows, so that some matrices stay in f16."""
    folder = tmp_path_factory.mktemp("precision")
    shape = {"hidden_size": 64, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape["vocab_size"] = 2048
    with_tokenizer(save_tiny(folder / "model", context=64, num_hidden_layers=3, **shape))
    write_text(folder, 100)
    told = {"model": str(folder / "model"), "calibrate": str(folder / "text.jsonl"), "samples": 8, "length": 32}
    told |= {"evaluate": "none", "speed": False, "general_text": 0, "explain": False, "device": "cpu", "trials": 6}
    told |= {"sites": "channel,query_head", "quality": "fast", "refit": False, "precision": "q4_0,q8_0,f16"}
    return make_search({**told, "want": "size=0.12x"})


def logits(streamed: StreamedModel, ids: torch.Tensor) -> torch.Tensor:
    hidden, calls = streamed.embed(ids)
    for index in range(streamed.checkpoint.layers):
        hidden = calls[index](streamed.load(index), hidden)
    return streamed.logits(ids, hidden).double().log_softmax(-1)


def test_a_format_and_channels_are_found_made_and_measured(
    settings: SearchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = interrupted(settings, tmp_path / "out", monkeypatch)
    assert [form["type"] for form in found["formats"]] == ["f16", "q8_0", "q4_0"]
    [form] = (form for form in found["formats"] if form["chosen"])
    [wish] = found["wishes"]
    [chosen] = (one for one in found["candidates"] if one["chosen"])
    [file] = (tmp_path / "out" / "export").glob("*.gguf")
    assert form["best"] == chosen["measured"]
    assert wish["got"] == file.stat().st_size
    assert wish["held"]
    assert chosen["takes"]["size"] == pytest.approx(file.stat().st_size, rel=0.02)
    assert any(t.tensor_type.name.lower() == form["type"] for t in gguf.GGUFReader(str(file)).tensors)

    # The candidate's divergence is that of the model which was made, rounded, from the untouched one.
    inputs, _ = opened(settings, CPU, Monitor(CPU, True))
    ids = evaluated(inputs.calibration.tokens)
    made = Rounded(Checkpoint.open(tmp_path / "out"), CPU, torch.float32, form["type"])
    own, whole = logits(made, ids), logits(inputs.streamed, ids)
    kl = float((whole.exp() * (whole - own)).sum(-1).mean())
    assert chosen["measured"] == pytest.approx(kl, rel=1e-3)
    recipe = secateur.load_recipe(tmp_path / "out" / "recipe.yaml")
    assert recipe.export is not None
    assert recipe.export.type == form["type"]
    assert json.loads((tmp_path / "out" / "search.json").read_text())["formats"] == found["formats"]


def test_a_format_that_suffices_is_said(settings: SearchSettings, tmp_path: Path) -> None:
    easy = make_search({**settings.model_dump(exclude_unset=True), "want": "size=0.6x", "precision": "q8_0"})
    with pytest.raises(InputError, match=r"as q8_0 with nothing gone.*--to gguf --type q8_0"):
        search(easy, tmp_path / "out", quiet=True)
    hard = make_search({**settings.model_dump(exclude_unset=True), "want": "size=0.01x"})
    with pytest.raises(InputError, match="with all gone that may go there are still"):
        search(hard, tmp_path / "hard", quiet=True)
    assert not (tmp_path / "hard").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "q9_0"}, "precision 'q9_0' is unknown"),
        ({"want": "params=0.5x"}, "for wishes about size or memory"),
        ({"want": ()}, "for wishes about size or memory"),
        ({"want": "size=0.5x,latency=0.5x"}, "none about seconds"),
        ({"sites": "channel,hidden"}, "aren't searched together"),
        ({"export": {"to": "padded"}}, "leave export out"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_search({"model": "m", "want": "size=0.5x", "precision": "q8_0,q4_0", **changes})
