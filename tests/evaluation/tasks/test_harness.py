"""lm-eval's tasks on our models; skipped where lm-eval isn't installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from secateur.errors import InputError
from secateur.evaluation.loading import load
from secateur.evaluation.tasks import evaluate_tasks
from tests.small import byte_tokenizer, save_tiny

installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval isn't installed")
TASKS: dict[str, dict[str, Any]] = {
    "own_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "Q: {{q}}\nA:",
        "doc_to_choice": "{{[a, b]}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "own_word": {"output_type": "loglikelihood", "doc_to_text": "{{q}}", "doc_to_target": "{{' ' + a}}"},
    "own_text": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{q}} {{b}} {{q}}"},
    "own_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 5},
        "metric_list": [{"metric": "exact_match"}],
    },
}
METRICS = {"own_word": ["perplexity", "acc"], "own_text": ["word_perplexity", "byte_perplexity", "bits_per_byte"]}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of YAML tasks, with their data beside them."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"q": f"What comes after {n}?", "a": f"the {n + 1}", "b": f"then {n}"} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, told in TASKS.items():
        where = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
        metrics = [{"metric": metric} for metric in METRICS.get(name, ())]
        whole = {"task": name, **where, "test_split": "test", "metric_list": metrics, **told}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    return folder


@installed
def test_as_lm_evals_own_model(tmp_path: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model, other = (save_tiny(tmp_path / str(seed), seed, context=128) for seed in (0, 1))
    for folder in (model, other):
        tokenizer = byte_tokenizer()
        tokenizer.eos_token = "<s>"  # which lm-eval's own class can't do without
        tokenizer.save_pretrained(folder)
    loaded = load(model, "cpu")
    theirs = simple_evaluate(
        HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4),
        tasks=list(TASKS),
        num_fewshot=2,
        limit=10,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tasks)),
    )["results"]
    own = evaluate_tasks(model, ",".join(TASKS), other, "cpu", limit=10, shots=2, include_path=str(tasks))
    json.dumps(own, allow_nan=False)
    for name in TASKS:
        assert own["tasks"][name]["items"] == 10
        for metric, figures in own["tasks"][name]["metrics"].items():
            assert figures["value"] == pytest.approx(theirs[name][f"{metric},none"], rel=1e-4), (name, metric)
    assert set(own["differences"]["own_choice"]) == {"acc", "acc_norm"}
    assert own["tasks"]["own_choice"]["metrics"]["acc"]["stderr"] is not None


@installed
def test_names_that_lm_eval_doesnt_know(tmp_path: Path, tasks: Path) -> None:
    model = save_tiny(tmp_path / "m")
    with pytest.raises(InputError, match="did you mean 'own_choice'"):
        evaluate_tasks(model, "own_choise", device="cpu", include_path=str(tasks))
    (tasks / "own_word.yaml").write_text("task: own_word\ndataset_path: json\noutput_type: nothing\n")
    with pytest.raises(InputError, match="lm-eval can't run own_word"):
        evaluate_tasks(model, "own_word", device="cpu", include_path=str(tasks))


def test_without_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"task 'arc_easy' is no file here; .* run pip install"):
        evaluate_tasks(tmp_path, "arc_easy")
    file = tmp_path / "x.jsonl"
    file.write_text('{"prompt": "a", "answer": "b"}', encoding="utf-8")
    with pytest.raises(InputError, match="--shots is for lm-eval's tasks"):
        evaluate_tasks(tmp_path, str(file), shots=3)
