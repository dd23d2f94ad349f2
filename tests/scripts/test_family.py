"""scripts/train_family.py: models that plain transformers loads, the same bytes after an interruption."""

from __future__ import annotations

import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from secateur.data.stdlib import documents

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "criteria.py"
SCRIPT = Path(__file__).parents[2] / "scripts" / "train_family.py"
TOKENS = 6 * 512


def words(out: Path, texts: Path, *flags: str, tokens: int = TOKENS) -> list[str]:
    files = ["--train", str(texts / "train.jsonl"), "--valid", str(texts / "valid.jsonl")]
    return [str(SCRIPT), "--out", str(out), *files, "--tokens", str(tokens), *flags]


def run(command: list[str]) -> str:
    """A script in this process; what it ends with, if it isn't well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        patch.syspath_prepend(str(Path(command[0]).parent))
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as end:
            return str(end.code)
    return ""


def train(out: Path, texts: Path, *flags: str, tokens: int = TOKENS) -> str:
    return run(words(out, texts, *flags, tokens=tokens))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for name, part in (("train", documents("prose", "train")[:60]), ("valid", documents("prose", "held_out")[:4])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sizes without an interruption."""
    out = tmp_path_factory.mktemp("family") / "out"
    command = [sys.executable, *words(out, texts, "--sizes", "0.25M,1M")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return out


def test_sizes_are_those_of_their_names_and_share_all_else(whole: Path) -> None:
    records = {size: json.loads((whole / size / "loss_curve.json").read_text()) for size in ("0.25M", "1M")}
    for size, record in records.items():
        model = AutoModelForCausalLM.from_pretrained(whole / size)
        count = sum(p.numel() for p in model.parameters())
        assert record["parameters"] == count == pytest.approx(float(size[:-1]) * 1e6, rel=0.06)
        assert record["embedding_parameters"] == model.config.vocab_size * model.config.hidden_size < 0.3 * count
        assert model.config.tie_word_embeddings
    small, large = records.values()
    assert all(small[key] == large[key] for key in ("tokens", "steps", "step", "seed", "data"))
    assert small["step"] * small["hyper"]["batch"] * small["hyper"]["context"] == TOKENS
    names = [(whole / size / "tokenizer.json").read_bytes() for size in records]
    assert names[0] == names[1]


def test_its_perplexity_is_that_of_one_document_after_the_other(whole: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(whole / "0.25M").double()
    tokenizer = AutoTokenizer.from_pretrained(whole / "0.25M")
    nats, count = 0.0, 0
    for line in (whole / "evaluate.jsonl").read_text(encoding="utf-8").splitlines():
        ids = tokenizer(json.loads(line)["text"])["input_ids"][:256]
        with torch.no_grad():
            rows = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for place, token in enumerate(ids[1:]):
            nats, count = nats - rows[place, token].item(), count + 1
    curve = json.loads((whole / "0.25M" / "loss_curve.json").read_text())["curve"]
    assert curve[-1]["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)


def test_a_run_that_was_stopped_gives_the_same_bytes(whole: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for steps, flags in enumerate(([], ["--resume"]), 1):  # without time, a session makes one step
        assert "0.25M isn't done" in train(out, texts, "--sizes", "0.25M", "--minutes", "0", *flags)
        assert json.loads((out / "0.25M" / "loss_curve.json").read_text())["step"] == steps
    assert train(out, texts, "--sizes", "0.25M", "--resume") == ""
    names = ("0.25M/model.safetensors", "0.25M.state.safetensors")
    assert (out / names[0]).read_bytes() == (whole / names[0]).read_bytes()


def test_a_size_that_would_not_be_alike_is_refused(whole: Path, texts: Path) -> None:
    said = train(whole, texts, "--sizes", "4M", tokens=TOKENS // 2)
    assert f"0.25M was trained with tokens {TOKENS}, not {TOKENS // 2}" in said
    assert not (whole / "4M").exists()


def test_what_cannot_be_trained_is_said_in_one_line(
    whole: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for size, tokens, said in (
        ("2M", TOKENS, "no such size: 2M"),
        ("1M", TOKENS, "--resume goes on"),
        ("4M", 100, "less than a step"),
    ):
        ended = train(whole, texts, "--sizes", size, tokens=tokens)
        assert said in ended + capsys.readouterr().err
        assert ended


def test_the_spread_of_the_criteria_is_shown_by_size(whole: Path, tmp_path: Path) -> None:
    methods = ["magnitude", "obs", "flap", "random"]
    command = [str(BENCHMARK), "--family", str(whole), "--methods", ",".join(methods)]
    command += ["--ratios", "0.5", "--seeds", "3", "--samples", "8", "--documents", "2", "--out", str(tmp_path)]
    assert run(command) == ""
    results = json.loads((tmp_path / "criteria-family.json").read_text())
    assert [result["model"] for result in results] == ["0.25M", "1M"]
    page = (tmp_path / "criteria-family.md").read_text().splitlines()
    for result in results:
        for repair, shown in (("none", "no refit"), ("refit", "refit")):
            best, worst, chance = math.inf, 0.0, 0.0
            for row in result["rows"]:
                if row["repair"] == repair and row["method"] in methods[:3]:
                    best, worst = min(best, row["perplexity"]), max(worst, row["perplexity"])
                if row["repair"] == repair and row["method"] == "random":
                    chance = row["perplexity"]
            (line,) = (x for x in page if x.startswith(f"| {result['parameters']:,} |") and f"| {shown} |" in x)
            share = (math.log(worst) - math.log(best)) / (math.log(chance) - math.log(result["dense"]))
            assert line.endswith(f"| {chance:.4g} | {worst / best:.3f} | {share:.1%} | {chance / best:.3f} |")
    assert (tmp_path / "criteria-family-50.svg").read_text().count("<circle") == 3 * 2  # with refit; without: dashed
