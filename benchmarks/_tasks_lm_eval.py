"""lm-eval on the shared task files, for `tasks.py`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from _tasks_tables import TASKS

SHARED = Path(__file__).resolve().parents[2] / "shared"


def lm_eval(
    model: Path, dtype: str, threads: int, limit: int | None, names: tuple[str, ...] = TASKS
) -> dict[str, Any]:
    """By task lm-eval's own figures of the same files, with its own model class: how many items, its metrics, and the
    seconds that it took. Nothing where it isn't installed."""
    try:
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        print("lm-eval isn't installed; its figures are left out")
        return {}
    import torch

    torch.set_num_threads(threads)
    wrapped = HFLM(pretrained=str(model), dtype=dtype, batch_size=16, device="cpu")
    found = {}
    for name in names:
        begin = time.perf_counter()
        task = yaml_of(name)
        told = {"limit": limit, "bootstrap_iters": 0, "log_samples": False}
        given = simple_evaluate(wrapped, tasks=[task], **told)
        seconds, results = time.perf_counter() - begin, given["results"][name]
        metrics = {m["metric"]: results[f"{m['metric']},none"] for m in task["metric_list"]}
        found[name] = {"items": given["n-samples"][name]["effective"], "metrics": metrics, "seconds": seconds}
    return found


def yaml_of(name: str) -> dict[str, Any]:
    """One of the shared files as a task of lm-eval."""
    file = SHARED / "data" / "tasks" / f"{name}.jsonl"
    about: dict[str, Any] = {"doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold"}
    names = ["acc", "acc_norm"]
    if name == "winogrande":
        about = {"doc_to_text": "gold", "doc_to_choice": "context_options", "doc_to_target": "continuation"}
        names = ["acc"]
    if name == "lambada_openai":
        about = {"doc_to_text": "{{context}}", "doc_to_target": "{{' ' + continuation}}"}
        names = ["acc", "perplexity"]
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "loglikelihood" if name == "lambada_openai" else "multiple_choice",
        "metric_list": [{"metric": metric} for metric in names],
        **about,
    }
