"""Classifiers, masked LMs and embeddings are trained after pruning: by the dense model's answers, or by labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig

import secateur
from secateur.errors import InputError
from secateur.evaluation.tasks.run import evaluate_tasks
from tests.cases import case
from tests.small import byte_tokenizer

COMMON = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
COMMON |= {"num_attention_heads": 4, "max_position_embeddings": 64, "num_labels": 2, "pad_token_id": 0}
COMMON |= {"initializer_range": 0.2}
WORDS = ("moth", "oak", "rain", "shears"), ("iron", "pump", "valve", "clock")  # each class talks of its own things


def rows(count: int, seed: int, tags: bool = False) -> list[dict[str, Any]]:
    """Texts of eight words, most of them of their class; the words' own classes with `tags`."""
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        label = int(torch.randint(2, (), generator=generator))
        kinds = torch.where(torch.rand(8, generator=generator) < 0.85, label, 1 - label).tolist()
        words = [WORDS[kind][int(torch.randint(4, (), generator=generator))] for kind in kinds]
        found.append({"tokens": words, "labels": kinds} if tags else {"text": " ".join(words), "label": label})
    return found


def write(file: Path, found: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return file


def learn(model: Any, tokenizer: Any) -> None:
    """Enough steps to tell the classes apart."""
    data = rows(400, 1)
    ids = tokenizer([row["text"] for row in data], padding=True, return_tensors="pt", add_special_tokens=True)
    labels = torch.tensor([row["label"] for row in data])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(120):
        some = torch.arange(step * 16, step * 16 + 16) % len(data)
        loss = model.train()(ids["input_ids"][some], ids["attention_mask"][some], labels=labels[some]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with `model` and half of its weights gone, in `pruned`."""
    known: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in known:
            folder = known[name] = tmp_path_factory.mktemp(name)
            torch.manual_seed(0)
            kind = "llama" if name.startswith("Llama") else "bert"
            model = getattr(transformers, name)(AutoConfig.for_model(kind, **COMMON))
            tokenizer = byte_tokenizer(adds_bos=True)
            tokenizer.pad_token, tokenizer.mask_token, tokenizer.model_max_length = "!", "~", 64
            if "Sequence" in name:
                learn(model, tokenizer)
            model.eval().save_pretrained(folder / "model")
            tokenizer.save_pretrained(folder / "model")
            text = write(folder / "text.jsonl", [{"text": row["text"]} for row in rows(300, 2)])
            told = {"model": folder / "model", "calibrate": text, "samples": 4, "length": 32, "method": "magnitude"}
            told |= {"sparsity": 0.9, "refit": False, "speed": False, "evaluate": "none", "quality": "fast"}
            secateur.prune(secateur.make_recipe(told), folder / "pruned", quiet=True)
        return known[name]

    return make


def recover(folder: Path, out: Path, data: Path, evaluate: str | None = "none", **given: Any) -> dict[str, Any]:
    told = {"data": str(data), "steps": 24, "evaluate_every": 12, "batch": 8, "length": 32, "learning_rate": 2e-3}
    told |= given
    report = secateur.recover(
        folder / "pruned", out, secateur.make_recovery(told), evaluate=evaluate, speed=False, quiet=True
    )
    before, after = (load_file(f / "model.safetensors") for f in (folder / "pruned", out))
    assert before.keys() == after.keys()
    for key in before:
        if before[key].dim() == 2 and bool((before[key] == 0).float().mean() > 0.1):
            assert torch.equal(before[key] == 0, after[key] == 0)
    return report


def accuracy(folder: Path, test: Path) -> float:
    return float(evaluate_tasks(folder, str(test), device="cpu")["tasks"][test.stem]["metrics"]["acc"]["value"])


def test_a_classifier_wins_back_what_pruning_cost(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder, test = made("BertForSequenceClassification"), write(tmp_path / "test.jsonl", rows(200, 3))
    labelled = write(tmp_path / "train.jsonl", rows(300, 4))
    dense, pruned = accuracy(folder / "model", test), accuracy(folder / "pruned", test)
    assert dense > pruned + 0.2
    found = {}
    for way, rate in (("distill", 2e-3), ("full", 2e-3), ("lora", 2e-2)):
        report = recover(folder, tmp_path / way, labelled, how=way, learning_rate=rate)
        found[way] = own = report["recovery"]
        with case(way):
            assert own["held_out_after"] < own["held_out_before"]
            assert own["zeros_kept"] > 0
            assert accuracy(tmp_path / way, test) > pruned + 0.1
    assert [own["loss"] for own in found.values()] == [{"logits": 1.0, "lm": 1.0}, {"lm": 1.0}, {"lm": 1.0}]


def test_without_labels_the_dense_model_says_what_is_right(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Of a decoder whose pieces of text are padded; hidden states too, if they are asked for."""
    folder = made("LlamaForSequenceClassification")
    report = recover(folder, tmp_path / "out", folder / "text.jsonl", None, loss="logits:1,hidden:0.1")
    agreed = report["recovery"]["agreement"]
    (before, after) = (next(iter(agreed[state].values()))["value"] for state in ("pruned", "recovered"))
    assert after > before
    assert "the original's class" in (tmp_path / "out" / "README.md").read_text()
    assert next(iter(report["agreement"].values()))["value"] == after


@pytest.mark.parametrize("name", ["BertForTokenClassification", "BertForMaskedLM", "BertModel"])
def test_every_head_has_its_answers(name: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = made(name)
    how = "full" if name == "BertForMaskedLM" else "distill"
    own = recover(folder, tmp_path / "out", folder / "text.jsonl", how=how)["recovery"]
    assert own["held_out_after"] < 0.95 * own["held_out_before"]
    assert own["loss"] == ({"lm": 1.0} if how == "full" else {"logits": 1.0})
    assert type(secateur.Checkpoint.open(tmp_path / "out").whole_config).__name__ == "BertConfig"
    if name == "BertForTokenClassification":
        labelled, test = (write(tmp_path / f"{n}.jsonl", rows(150, n, tags=True)) for n in (5, 6))
        own = recover(folder, tmp_path / "tags", labelled, how="full")["recovery"]
        assert own["held_out_after"] < own["held_out_before"]
        assert accuracy(tmp_path / "tags", test) > accuracy(folder / "pruned", test) + 0.2


def test_what_cannot_be_trained_is_said_in_a_line(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = made("BertForSequenceClassification")
    text = folder / "text.jsonl"
    tags = write(tmp_path / "tags.jsonl", rows(20, 5, tags=True))
    odd = write(tmp_path / "odd.jsonl", [{"text": "moth", "label": 7}] * 20)
    cases: dict[str, tuple[Path, dict[str, Any]]] = {
        "no labels in it that could be learned; give rows with text and label": (text, {"how": "full"}),
        "asks for a class for each token": (tags, {}),
        "label 7 of item 1 is no class": (odd, {}),
        "--top-k is for models that predict next tokens": (text, {"top_k": 4, "loss": "logits"}),
        "another head": (text, {"teacher": str(made("BertForMaskedLM") / "model")}),
    }
    for says, (data, given) in cases.items():
        with case(says), pytest.raises(InputError, match=says):
            recover(folder, tmp_path / "out", data, **given)
    assert not (tmp_path / "out").exists()
