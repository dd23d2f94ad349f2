"""Tasks from files: as a slow loop that anyone can read computes them, and as lm-eval does where it is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
)

from secateur.data.items import Choice, Continuation
from secateur.data.tasks import read_task
from secateur.errors import InputError
from secateur.evaluation.loading import Loaded, load
from secateur.evaluation.tasks import evaluate_tasks
from secateur.evaluation.tasks.answers import is_right, normalised
from secateur.evaluation.tasks.run import outcome_of
from secateur.numerics.f1 import macro_f1
from tests.cases import case
from tests.small import byte_tokenizer, save_tiny

SHARED = ("copa", "arc_easy", "piqa", "boolq", "winogrande", "lambada_openai")
FEW = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "m", context=64)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def call(*rows: Any, name: str = "mine.jsonl") -> str:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(file)

    return call


@torch.no_grad()
def slowly(loaded: Loaded, context: str, continuation: str) -> tuple[float, bool]:
    """One option: the text tokenised whole, one forward pass, the log-softmax of all logits."""
    kept = context.rstrip()
    whole, before = (loaded.tokenizer(text)["input_ids"] for text in (context + continuation, kept))
    ids = whole[-(loaded.model.config.max_position_embeddings + 1) :]
    after = len(whole) - len(before)
    log_p = loaded.model(input_ids=torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)[-after:]
    wanted = torch.tensor(ids[-after:])
    return float(log_p.gather(1, wanted[:, None]).sum()), bool((log_p.argmax(-1) == wanted).all())


def check_by_hand(loaded: Loaded, spec: str, limit: int) -> None:
    task = read_task(spec).first(limit)
    found = outcome_of(loaded, task)
    for number, item in enumerate(task.items):
        if isinstance(item, Continuation):
            nats, greedy = slowly(loaded, item.context, item.continuation)
            assert found.items["perplexity"][number] == pytest.approx(nats, rel=1e-4, abs=1e-4)
            assert found.items["acc"][number] == greedy
        elif isinstance(item, Choice):
            nats = [slowly(loaded, *pair)[0] for pair in item.pairs]
            assert found.items["acc"][number] == (nats.index(max(nats)) == item.gold)
            if item.lengths is not None:
                per_character = [n / length for n, length in zip(nats, item.lengths, strict=True)]
                assert found.items["acc_norm"][number] == (per_character.index(max(per_character)) == item.gold)


def test_the_shared_tasks_run_as_they_are(shared: Path) -> None:
    loaded = load(shared / "models" / "stories260K", "cpu")
    for name in SHARED:
        with case(name):
            check_by_hand(loaded, str(shared / "data" / "tasks" / f"{name}.jsonl"), FEW)


def harness(loaded: Loaded, file: Path, limit: int | None) -> dict[str, float]:
    """lm-eval's figures of one file, by its own model class."""
    evaluator = pytest.importorskip("lm_eval.evaluator", reason="lm-eval isn't installed")
    from lm_eval.models.huggingface import HFLM

    kind = read_task(str(file)).form
    told = {
        "choices": {"doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold"},
        "contexts": {"doc_to_text": "gold", "doc_to_choice": "context_options", "doc_to_target": "continuation"},
        "continuation": {"doc_to_text": "{{context}}", "doc_to_target": "{{' ' + continuation}}"},
    }[kind]
    metrics = {"choices": ["acc", "acc_norm"], "contexts": ["acc"], "continuation": ["acc", "perplexity"]}[kind]
    task = {
        "task": file.stem,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(file)}},
        "validation_split": "validation",
        "output_type": "loglikelihood" if kind == "continuation" else "multiple_choice",
        "metric_list": [{"metric": name} for name in metrics],
        **told,
    }
    model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=16)
    found = evaluator.simple_evaluate(model, tasks=[task], limit=limit, bootstrap_iters=0, log_samples=False)
    return {name: found["results"][file.stem][f"{name},none"] for name in metrics}


@pytest.mark.parametrize("limit", [FEW, pytest.param(None, marks=pytest.mark.slow)])
def test_as_lm_eval(whole: Path, limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval isn't installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = load(whole / "models" / "stories260K", "cpu")
    for name in SHARED:
        with case(name):
            file = whole / "data" / "tasks" / f"{name}.jsonl"
            own = outcome_of(loaded, read_task(str(file)).first(limit)).figures()["metrics"]
            for metric, value in harness(loaded, file, limit).items():
                assert own[metric]["value"] == pytest.approx(value, rel=1e-4)


def test_two_models_item_by_item(tmp_path: Path, model: Path, write: Callable[..., str]) -> None:
    rows = [{"query": f"Is {n} odd?", "choices": ["yes", "no", "perhaps"], "gold": n % 3} for n in range(20)]
    spec = write(*rows)
    same = evaluate_tasks(model, spec, model, device="cpu")
    assert json.loads(json.dumps(same, allow_nan=False)) == same
    assert same["differences"]["mine"]["acc"] == {"difference": 0, "stderr": 0, "better": 0, "worse": 0, "p": 1}
    found = evaluate_tasks(model, spec, save_tiny(tmp_path / "o", seed=3, context=64), device="cpu")
    own, other = found["tasks"]["mine"], found["reference"]["tasks"]["mine"]
    assert (own["items"], own["chance"], own["metric"]) == (20, pytest.approx(1 / 3), "acc")
    told = found["differences"]["mine"]["acc"]
    assert told["difference"] == pytest.approx(own["metrics"]["acc"]["value"] - other["metrics"]["acc"]["value"])
    assert told["better"] - told["worse"] == round(20 * told["difference"])
    assert 0 < told["p"] <= 1
    limited = evaluate_tasks(model, spec, device="cpu", limit=5)
    assert limited["tasks"]["mine"]["items"] == 5


def test_generated_answers(model: Path, write: Callable[..., str]) -> None:
    loaded = load(model, "cpu")
    prompts = ["The moon", "The thin", "the cat sat", "a"]
    ids = [loaded.tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in prompts]
    said = [
        loaded.tokenizer.decode(loaded.model.generate(i, max_new_tokens=4, do_sample=False)[0, i.shape[1] :])
        for i in ids
    ]
    rows = [{"prompt": p, "answer": a or "?", "max_tokens": 4} for p, a in zip(prompts, said, strict=True)]
    right = [bool(normalised(answer)) for answer in said]
    rows.append({"prompt": "a", "answer": "no such answer", "max_tokens": 4})
    found = outcome_of(loaded, read_task(write(*rows)))
    assert found.items["exact_match"][:4] == right or all(found.items["exact_match"][:4])
    assert found.items["exact_match"][4] == 0
    with pytest.raises(InputError, match="no chat template"):
        outcome_of(loaded, read_task(write({"messages": [{"role": "user", "content": "x"}], "answer": "y"})))


def test_what_makes_an_answer_right(write: Callable[..., str]) -> None:
    def one(**row: Any) -> Any:
        return read_task(write({"prompt": "?", **row})).items[0]

    assert is_right(one(answer="The Moon"), "  the   moon. ")
    assert not is_right(one(answer="The Moon"), "the moons")
    assert is_right(one(answer=["sun", "moon"]), "Moon")
    summed = one(answer="42", regex=r"#### (\d+)")
    assert is_right(summed, "so it is #### 7, no, #### 42")
    assert not is_right(summed, "42")
    assert is_right(one(regex="^ya?"), "yes")


def test_classes(tmp_path: Path, write: Callable[..., str]) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, initializer_range=0.5, num_labels=3, id2label={0: "a", 1: "b", 2: "c"},
    )  # fmt: skip
    classifier = BertForSequenceClassification(config).eval()
    classifier.save_pretrained(tmp_path / "m")
    tokenizer: PreTrainedTokenizerFast = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "m")
    texts = ["one", "two", "three", "four", "seventeen"]
    with torch.no_grad():
        logits = [classifier(torch.tensor([tokenizer(text)["input_ids"]])).logits[0] for text in texts]
    classes = [int(row.argmax()) for row in logits]
    rows = [{"text": text, "label": "abc"[c]} for text, c in zip(texts, classes, strict=True)]
    rows[0]["label"] = (classes[0] + 1) % 3
    found = evaluate_tasks(tmp_path / "m", write(*rows), device="cpu")
    assert found["tasks"]["mine"]["metrics"]["acc"]["value"] == 0.8
    gold = [int(rows[0]["label"]), *classes[1:]]
    assert found["tasks"]["mine"]["metrics"]["f1"] == {
        "value": pytest.approx(macro_f1(classes, gold)),
        "stderr": None,
    }
    with pytest.raises(InputError, match="is no class: a, b, c"):
        evaluate_tasks(tmp_path / "m", write({"text": "x", "label": "d"}), device="cpu")
    with pytest.raises(InputError, match="give rows with text and label"):
        evaluate_tasks(tmp_path / "m", write({"prompt": "x", "answer": "d"}), device="cpu")


def test_classes_of_words(tmp_path: Path, write: Callable[..., str]) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16, initializer_range=0.5, num_labels=3, id2label={0: "a", 1: "b", 2: "c"},
    )  # fmt: skip
    tagger = BertForTokenClassification(config).eval()
    tagger.save_pretrained(tmp_path / "m")
    tokenizer: PreTrainedTokenizerFast = byte_tokenizer(adds_bos=True)
    tokenizer.save_pretrained(tmp_path / "m")
    words = [["one", "two"], ["three", "four", "five"], ["a", "much", "longer", "one", "of", "words"]]
    found, gold, rows = [], [], []
    for own in words:
        batch = tokenizer(own, is_split_into_words=True, truncation=True, max_length=16)
        with torch.no_grad():
            chosen = tagger(torch.tensor([batch["input_ids"]])).logits[0].argmax(-1).tolist()
        seen = [chosen[batch.word_ids().index(w)] for w in range(len(own)) if w in batch.word_ids()]
        labels: list[Any] = [*seen, *[0] * (len(own) - len(seen))]
        labels[0] = -100 if own[0] == "one" else (labels[0] + 1) % 3
        found += [c for c, label in zip(seen, labels, strict=False) if label != -100]
        gold += [label for label in labels[: len(seen)] if label != -100]
        rows.append({"tokens": own, "labels": labels})
    told = evaluate_tasks(tmp_path / "m", write(*rows), device="cpu")
    task = told["tasks"]["mine"]
    assert task["items"] == len(gold) < sum(map(len, words)) - 1
    assert task["metrics"]["acc"]["value"] == pytest.approx(sum(map(int.__eq__, found, gold)) / len(gold))
    assert task["metrics"]["f1"]["value"] == pytest.approx(macro_f1(found, gold))
    assert any("beyond the context" in note for note in told["notes"])
    with pytest.raises(InputError, match=r"asks for a class for a text, and .* give rows with tokens and labels"):
        evaluate_tasks(tmp_path / "m", write({"text": "x", "label": "a"}), device="cpu")


def test_labels_are_for_classifiers(model: Path, write: Callable[..., str]) -> None:
    with pytest.raises(InputError, match="give choices and gold"):
        evaluate_tasks(model, write({"text": "x", "label": 0}), device="cpu")
