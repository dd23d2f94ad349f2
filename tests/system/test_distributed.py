"""Two ranks do what one does: the same plan, the same masks; and they end together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import secateur
from secateur.calibration.stream import TOKENS_PER_BATCH
from secateur.config.recipe import make_recipe
from secateur.system import distributed
from secateur.workspace.folder import WORK
from tests.model.mixture import upcycled
from tests.small import byte_tokenizer, save_tiny, tiny_llama
from tests.system.launch import SECONDS, torchrun

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")

LAYERS = 3
LENGTH, MANY = 32, 4 * TOKENS_PER_BATCH // 32
MERGED = {"model": "mixture", "sites": "expert", "sparsity": 0.5, "merge_experts": True}
# What is asked for, and how many sequences: `few` leaves one of the ranks without any.
ASKED: dict[str, dict[str, Any]] = {
    "weights": {"sparsity": 0.5, "method": "sparsegpt", "quality": "fast"},
    "weights, dense stream": {"sparsity": 0.5, "quality": "balanced"},
    "weights, few": {"pattern": "2:4", "method": "wanda", "samples": 8},
    "channels": {"sites": "channel,query_head", "sparsity": 0.5, "method": "obs"},
    "layers": {"sites": "layer", "sparsity": 0.34, "method": "leave_one_out"},
    "tuned": {"sparsity": 0.5, "method": "magnitude", "reconstruct": 30},
    "tuned, few": {"sparsity": 0.5, "method": "magnitude", "reconstruct": 30, "samples": 8},
    "steps": {"sites": "channel,layer", "sparsity": 0.34, "steps": 2},
    "search": {"sites": "channel", "sparsity": 0.5, "allocate": "evolve", "search": "20"},
    "hidden": {"sites": "hidden,channel", "sparsity": 0.25},
    "from disk": {"sparsity": 0.5, "method": "wanda", "memory": "1B"},
    "merged": {**MERGED, "samples": MANY // 2},
    "merged, few": {**MERGED, "samples": 6},
}


def test_solves_are_spread_by_their_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world", lambda: 2)
    assert distributed.owners([1, 1, 1, 1, 9, 3]) == [1, 1, 1, 1, 0, 1]
    monkeypatch.setattr(distributed, "world", lambda: 3)
    assert sorted(distributed.owners([5, 5, 5])) == [0, 1, 2]


def asked(source: Path, name: str, **changes: Any) -> dict[str, Any]:
    return {
        "calibrate": str(source / "text.jsonl"),
        "samples": MANY,
        "length": LENGTH,
        "evaluate": "none",
        "speed": False,
        **ASKED[name],
        "model": str(source / ASKED[name].get("model", "model")),
        **changes,
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and some text."""
    folder = tmp_path_factory.mktemp("source")
    save_tiny(folder / "model", num_hidden_layers=LAYERS)
    dense = tiny_llama(context=64, num_hidden_layers=LAYERS, initializer_range=0.3)
    upcycled(dense, 0.3).save_pretrained(folder / "mixture")
    byte_tokenizer().save_pretrained(folder / "mixture")
    rows = [{"text": f"the thing number {i} thought that {i * i * 31 % 9973} was then; " * 3} for i in range(100)]
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def together(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the outputs of all runs on two ranks, one launch for all."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "scratch").mkdir()
    runs = [{"recipe": asked(source, name), "out": str(folder / name)} for name in ASKED]
    refused = [{"recipe": asked(source, "weights"), "out": str(source), "said": str(folder / "said")}]
    (folder / "jobs.json").write_text(json.dumps({"runs": runs, "refused": refused}))
    script = str(Path(__file__).with_name("ranks.py"))
    done = torchrun([script, "jobs", str(folder / "jobs.json")], TMPDIR=str(folder / "scratch"))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ASKED)
def test_two_ranks_do_what_one_does(name: str, source: Path, together: Path, tmp_path: Path) -> None:
    secateur.prune(make_recipe(asked(source, name)), tmp_path / "one", quiet=True)
    folders = (tmp_path / "one", together / name)
    plan, other = (json.loads((f / "plan.json").read_text()) for f in folders)
    assert plan == other
    sites, others = (json.loads((f / "report.json").read_text())["sites"] for f in folders)
    scores = [[site.get("score") or 0.0 for site in each] for each in (sites, others)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    if "merged" in name:
        for site, other in zip(sites, others, strict=True):
            assert site["merged"]
            for merge, twin in zip(site["merged"], other["merged"], strict=True):
                assert [merge[key] == twin[key] for key in ("unit", "into", "taken")] == [True] * 3
            assert other["error_after_refit"] == pytest.approx(site["error_after_refit"], rel=1e-4)
    one, two = (load_file(f / "model.safetensors") for f in folders)
    same = sum(int(((one[n] == 0) == (two[n] == 0)).sum()) for n in one)
    assert same >= 0.999 * sum(t.numel() for t in one.values())
    if "tuned" not in name:  # which follows another sequence of batches on two ranks
        for n in one:
            torch.testing.assert_close(one[n], two[n], rtol=1e-4, atol=1e-5)


def test_one_rank_writes_and_nothing_stays(together: Path) -> None:
    for name in ASKED:
        assert not (together / name / WORK).exists()
        events = [json.loads(line) for line in (together / name / "events.jsonl").read_text().splitlines()]
        assert [event["ranks"] for event in events if event["event"] == "run"] == [2]
        steps = [event["text"] for event in events if event["event"] == "step" and event["stage"] == "prune"]
        assert len(steps) == len(set(steps))
    leftovers = [path.name for path in (together / "scratch").iterdir() if path.name.startswith("secateur")]
    assert leftovers == []


def test_what_one_rank_refuses_all_refuse(together: Path) -> None:
    said = [(together / f"said-{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert "holds files of the model" in said[0]


def test_a_rank_that_dies_ends_the_run_with_one_line(source: Path, tmp_path: Path) -> None:
    flags = {k.replace("_", "-"): str(v) for k, v in asked(source, "weights").items() if k not in ("model", "speed")}
    words = [word for key, value in flags.items() for word in (f"--{key}", value)]
    words = ["prune", str(source / "model"), *words, "--no-speed", "--out", str(tmp_path / "out")]
    done = torchrun([str(Path(__file__).with_name("ranks.py")), "dies", "2", *words])
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.stderr
    assert "the same command with --resume goes on" in lines[0]
    report = secateur.prune(make_recipe(asked(source, "weights")), tmp_path / "out", resume=True, quiet=True)
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert [event["resumed"] for event in events if event["event"] == "run"] == [False, True]
    again = [event["text"] for event in events if event["event"] == "step" and "done before" in event["text"]]
    assert again == ["layer 0, done before", "layer 1, done before"]
    secateur.prune(make_recipe(asked(source, "weights")), tmp_path / "straight", quiet=True)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "out"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
    assert report["gate"]["max_logit_difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [["--method", "sparsegpt", "--quality", "fast"], ["--sites", "channel", "--method", "obs"]]
)
def test_a_real_model_from_the_command_line(flags: list[str], shared: Path, tmp_path: Path) -> None:
    words = ["prune", str(shared / "models" / "stories260K"), "--sparsity", "0.5", *flags, "--no-speed"]
    words += ["--calibrate", str(shared / "data" / "tinystories" / "calibrate.jsonl"), "--samples", "32"]
    words += ["--evaluate", str(shared / "data" / "tinystories" / "eval.jsonl")]
    for ranks in (1, 2):
        out = ["--out", str(tmp_path / str(ranks))]
        if ranks == 2:
            done = torchrun(["-m", "secateur", *words, *out])
        else:
            alone = {**os.environ, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "secateur", *words, *out]
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=alone)
        assert done.returncode == 0, done.stderr
    plan, other = ((tmp_path / n / "plan.json").read_text() for n in "12")
    assert plan == other
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in "12")
    same = sum(int(((one[n] == 0) == (two[n] == 0)).sum()) for n in one)
    assert same >= 0.999 * sum(t.numel() for t in one.values())
    first, second = (
        json.loads((tmp_path / n / "report.json").read_text())["evaluation"]["after"]["perplexity"] for n in "12"
    )
    assert second == pytest.approx(first, rel=0.005)


# ----------------------------------------------------------------------------- one process


def test_alone_everything_is_a_plain_call() -> None:
    tensor = torch.ones(3)
    distributed.all_reduce([tensor])
    distributed.broadcast([tensor], 0)
    assert distributed.share_object({"a": 1}, 0) == {"a": 1}
    assert distributed.share_tensors({"a": tensor}, 0, torch.device("cpu"))["a"] is tensor
    assert (distributed.rank(), distributed.world(), distributed.is_main()) == (0, 1, True)
    assert distributed.share(7) == slice(0, 7)
    with pytest.raises(secateur.SecateurError, match="no"), distributed.in_step():
        raise secateur.SecateurError("no")


def test_sequences_are_shared_out_without_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    for world in (1, 2, 3, 8):
        for count in (0, 1, 5, 8, 17):
            monkeypatch.setattr(distributed, "world", lambda world=world: world)
            taken = []
            for rank in range(world):
                monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                taken.append(list(range(count))[distributed.share(count)])
            assert [i for part in taken for i in part] == list(range(count))
            assert max(map(len, taken)) - min(map(len, taken)) <= 1
