"""Classifiers, embeddings, masked LMs: the body is cut, the head stays, and its own class loads the result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

import secateur
from secateur.calibration.gradients import gradients_of_model
from secateur.data.batches import calibration_batches, framed
from secateur.data.corpus import Corpus
from secateur.errors import InputError
from secateur.evaluation import agree, evaluate, evaluate_any
from secateur.evaluation.agreement import pooled
from secateur.evaluation.windows import context_length
from secateur.model.checkpoint import Checkpoint
from secateur.model.heads import BODY, CAUSAL, MASKED, SEQUENCE, answer_of, head_of
from secateur.model.round_trip import load_as_user
from secateur.model.sentence_modules import pooling_of
from tests.cases import case
from tests.small import byte_tokenizer

COMMON: dict[str, Any] = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 66, "pad_token_id": 1, "bos_token_id": 258, "eos_token_id": 2,
    "initializer_range": 0.3,
}  # fmt: skip
GROUPED = {"num_attention_heads": 8, "num_key_value_heads": 4}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "BertForTokenClassification": ("bert", {"num_labels": 3}),
    "BertModel": ("bert", {}),
    "LlamaForSequenceClassification": ("llama", {**GROUPED, "pad_token_id": None, "num_labels": 3}),
    "LlamaModel": ("llama", GROUPED),
    "GPT2ForSequenceClassification": ("gpt2", {"num_labels": 3}),
    "RobertaForSequenceClassification": ("roberta", {"num_labels": 3}),
}


def save(name: str, folder: Path) -> Path:
    kind, changes = CASES[name]
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(transformers, name)(AutoConfig.for_model(kind, **{**COMMON, **changes}))
    model.eval().save_pretrained(folder)
    byte_tokenizer(adds_bos=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    found: dict[str, Path] = {}

    def get(name: str) -> Path:
        return found.setdefault(name, found.get(name) or save(name, tmp_path_factory.mktemp(name)))

    return get


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    rows = (f"The {n}th thin thief thinks of moths and {n * n} other things." for n in range(30))
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return file


def told(model: Path, text: Path, **more: Any) -> Any:
    given = {"sparsity": 0.5, "calibrate": str(text), "samples": 6, "length": 24, "quality": "fast", "device": "cpu"}
    return secateur.make_recipe({"model": str(model), "sites": "channel", **given, **more})


def whole_head(folder: Path, layers: str) -> dict[str, torch.Tensor]:
    return {name: t for name, t in load_file(folder / "model.safetensors").items() if layers not in name}


@pytest.mark.parametrize("name", CASES)
def test_the_body_is_cut_and_the_head_stays(
    name: str, folder_of: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    """Of layers that differ, so that the modelling file is needed; the gate has compared what both compute."""
    source, out = folder_of(name), tmp_path / name
    report = secateur.prune(told(source, text, sites="channel,kv_group", protect="0"), out, quiet=True)
    model, how = load_as_user(out)
    assert type(model).__name__ == f"Pruned{name}"
    assert how.startswith(head_of(model.config).auto.__name__)
    layers = model.get_submodule(Checkpoint.open(out).family.layers)
    widths = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    assert widths[0] > widths[1] == widths[2]
    path = Checkpoint.open(source).family.layers.rpartition(".")[2] + "."
    before, after = whole_head(source, path), whole_head(out, path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    (agreed,) = report["agreement"].values()
    assert report["not_evaluated"].endswith("predicts no next token")
    assert 0 < agreed["value"] <= 1
    assert agreed["metric"] in (out / "report.json").read_text()
    again = agree(out, str(text), source, "cpu", quiet=True)["agreement"][str(text)]
    assert (again["metric"], again["items"]) == (agreed["metric"], 30)
    assert agree(source, str(text), source, "cpu")["agreement"][str(text)]["value"] == pytest.approx(1.0)


def test_stock_classes_take_what_is_alike(folder_of: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    for name, sites in (("LlamaForSequenceClassification", "kv_group"), ("LlamaModel", "layer")):
        with case(name):
            sparsity = 0.34 if sites == "layer" else 0.25
            report = secateur.prune(
                told(folder_of(name), text, sites=sites, sparsity=sparsity), tmp_path / name, quiet=True
            )
            assert report["result"]["uniform"]
            assert report["result"]["architecture"] == name.replace(
                "Llama", "Mistral" if sites == "kv_group" else "Llama"
            )
    config = AutoConfig.from_pretrained(tmp_path / "LlamaForSequenceClassification")
    assert isinstance(AutoModelForSequenceClassification.from_config(config), transformers.PreTrainedModel)


def test_sub_blocks_and_gradients_look_at_what_the_head_says(
    folder_of: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    source = folder_of("LlamaForSequenceClassification")
    secateur.prune(told(source, text, sites="ffn", sparsity=0.34), tmp_path / "ffn", quiet=True)
    streamed = secateur.open_for_walk(source, "cpu", "float32")
    ids = torch.arange(20, 44).view(2, 12)
    model = secateur.load(source, "cpu", "float32")
    said = torch.cat([answer_of(model(input_ids=row[None])) for row in ids])
    weight = model.model.layers[1].mlp.down_proj.weight.requires_grad_(True)
    want = torch.zeros_like(weight)
    for row, label in zip(ids, said.argmax(-1), strict=True):
        loss = torch.nn.functional.cross_entropy(model(input_ids=row[None]).logits, label[None])
        want += torch.autograd.grad(loss, weight)[0] / 2
    found = gradients_of_model(streamed, ids, frozenset({"gradient"}))[1]["gradient"]["mlp.down_proj.weight"]
    torch.testing.assert_close(found, want, atol=1e-6, rtol=1e-4)


def test_what_cannot_be_had_is_said_in_a_line(folder_of: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    body, classifier, other = (folder_of(n) for n in ("BertModel", "LlamaForSequenceClassification", "LlamaModel"))
    cases: dict[str, Callable[[], object]] = {
        "gives hidden states; use a method": lambda: secateur.prune(
            told(body, text, method="taylor"), tmp_path / "o"
        ),
        "use --allocate local": lambda: secateur.prune(told(body, text, allocate="sensitivity"), tmp_path / "o"),
        "has no perplexity; evaluate": lambda: evaluate(classifier, str(text), device="cpu"),
        "has no perplexity; give": lambda: evaluate_any(classifier, str(text), device="cpu"),
        "with the same head": lambda: agree(classifier, str(text), other, "cpu"),
        "predicts no next token; leave the tasks out": lambda: secateur.prune(
            told(body, text, tasks=str(questions(tmp_path))), tmp_path / "o"
        ),
    }
    for says, run in cases.items():
        with case(says), pytest.raises(InputError, match=says):
            run()
    assert not (tmp_path / "o").exists()


def questions(folder: Path) -> Path:
    file = folder / "questions.jsonl"
    file.write_text('{"query": "x", "choices": ["a", "b"], "gold": 0}\n')
    return file


def test_heads_by_name() -> None:
    def head(kind: str, *names: str, **more: Any) -> Any:
        config = AutoConfig.for_model(kind, **more)
        config.architectures = list(names) or None
        return head_of(config)

    assert head("llama") is head("llama", "LlamaForCausalLM") is head("mistral", "PrunedMistralForCausalLM") is CAUSAL
    assert head("bert") is head("bert", "BertForPreTraining") is head("roberta", "RobertaForCausalLM") is MASKED
    assert head("roberta", "RobertaForCausalLM", is_decoder=True) is CAUSAL
    assert head("mistral", "LlamaForSequenceClassification") is SEQUENCE
    assert head("llama", "PrunedLlamaModel") is BODY
    assert head("llama", "os", "NoSuchModel") is CAUSAL
    assert head("llama4", "Llama4ForConditionalGeneration") not in (BODY, MASKED)
    assert context_length(AutoConfig.for_model("roberta", max_position_embeddings=514, pad_token_id=1)) == 512


def test_sequences_begin_and_end_as_the_tokenizer_would() -> None:
    tokenizer = byte_tokenizer(adds_bos=True)
    corpus = Corpus("c", "0", documents=("abcdefghij" * 8,))
    plain = calibration_batches(corpus, tokenizer, 4, 10)
    found = framed(plain, tokenizer)
    assert found.tokens[:, 0].tolist() == [258] * 4
    assert torch.equal(found.tokens[:, 1:], plain.tokens[:, 1:])
    assert framed(found, tokenizer).sha256 == found.sha256 != plain.sha256
    assert framed(plain, byte_tokenizer()).sha256 == plain.sha256


def test_a_folder_of_sentence_transformers(folder_of: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    source = save("BertModel", tmp_path / "source")
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        {"idx": 3, "name": "3", "path": "../away", "type": "sentence_transformers.models.Normalize"},
    ]
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    for name in ("1_Pooling", "2_Dense", "3_Own"):
        (source / name).mkdir()
    (source / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    save_file({"linear.weight": torch.ones(2, 2)}, source / "2_Dense" / "model.safetensors")
    (source / "2_Dense" / "pytorch_model.bin").write_text("x")
    out = tmp_path / "out"
    report = secateur.prune(told(source, text), out, quiet=True)
    for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "2_Dense/model.safetensors"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
        assert name in report["files"]
    assert any("2_Dense/pytorch_model.bin (weights" in w and "3_Own (a folder)" in w for w in report["warnings"])
    (agreed,) = report["agreement"].values()
    assert (agreed["metric"], agreed["pooling"]) == ("cosine", "first")
    secateur.prune(told(source, text, sparsity=0.25), out, overwrite=True, quiet=True)
    states = torch.tensor([[1.0, 4.0], [3.0, 2.0]])
    assert [pooled(states, way).tolist() for way in ("first", "last", "max", "mean")] == [
        [1, 4],
        [3, 2],
        [3, 4],
        [2, 3],
    ]
    (source / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    assert pooling_of(source) == "last"
    (source / "modules.json").write_text('{"not": "a list"}')
    with pytest.raises(InputError, match=r"modules\.json: is not the short list"):
        pooling_of(source)
    (tmp_path / "older").mkdir()
    modules[0]["path"] = "0_Transformer"
    (tmp_path / "older" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match=r"give .*0_Transformer"):
        Checkpoint.open(tmp_path / "older")
