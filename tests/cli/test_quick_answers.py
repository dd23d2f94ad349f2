"""What can be answered without a model is answered without importing torch; one process asks all of it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ANSWERS: list[tuple[list[str], int, str]] = [
    (["--help"], 0, "Pruning shears"),
    (["--version"], 0, "secateur 0."),
    (["inspect", "--help"], 0, "secateur inspect embedded"),
    (["prune", "--help"], 0, "hidden"),
    (["methods"], 0, "2301.00774"),
    (["methods", "--json"], 0, '"wanda"'),
    (["explain", "DONE"], 0, "layers.0"),
    (["explain", "DONE", "--json"], 0, '"sites"'),
    (["show", "DONE"], 0, "Weights, by layer ▁ 0.0% gone"),
    (["show", "nowhere"], 2, "no result"),
    (["explain", "nowhere"], 2, "no finished run"),
    (["prun"], 2, "No such command 'prun'; did you mean 'prune'?"),
    (["prune", "--sparsty", "0.5"], 2, "No such option: --sparsty; did you mean --sparsity?"),
    (["prune", "nowhere", "-s", "0.5", "--out", "x"], 2, "no such folder"),
    (["prune", "embedded", "-s", "0.5"], 2, "add --out DIR"),
    (["prune", "embedded", "-s", "0.5", "--out", "x", "-m", "wnada"], 2, "did you mean 'wanda'?"),
    (["prune", "embedded", "-s", "0.5", "--out", "x", "-m", "obs"], 2, "methods that do: magnitude, wanda"),
    (["prune", "embedded", "-s", "0.5", "--out", "x", "--sites", "head"], 2, "did you mean 'query_head'?"),
    (["prune", "embedded", "-s", "0.5", "--out", "x", "--sites", "mlp"], 2, "did you mean 'channel'?"),
    (["prune", "embedded", "-s", "0.5", "--out", "x", "-Q", "bst"], 2, "did you mean 'best'?"),
    (["prune", "embedded", "-s", "0.5", "--out", "x", "--allocate", "globl"], 2, "did you mean 'global'?"),
    (["prune", "embedded", "-s", "0.5", "--out", "x", "--schedule", "qubic"], 2, "did you mean 'cubic'?"),
    (["prune", "embedded", "-s", "0.5", "--out", "x", "--target", "dens"], 2, "did you mean 'dense'?"),
    (["prune", "embedded", "-s", "0.5", "--out", "x", "--masks", "gradually"], 2, "did you mean 'gradual'?"),
    (["prune", "embedded", "-s", "0.5", "--out", "x", "--objective", "los"], 2, "did you mean 'loss'?"),
    (["prune", "embedded", "-s", "150%", "--out", "x"], 2, "sparsity 1.5 for weight is not between 0 and 1"),
    (["prune", "embedded", "-s", "half", "--out", "x"], 2, "is not a number"),
    (["prune", "embedded", "--pattern", "4:2", "--out", "x"], 2, "pattern '4:2' is unknown"),
    (["prune", "embedded", "-s", "0.5", "--out", "x", "--samples", "0"], 2, "samples = 0"),
    (["prune", "embedded", "-s", "0.5", "--out", "x", "--device", "gpu"], 2, "--device gpu is unknown"),
    (["prune", "embedded", "-s", "0.5", "--out", "x", "--dtype", "int8"], 2, "--dtype int8 is unknown"),
    (["prune", "embedded", "-s", "0.5", "--out", "x", "--threads", "0"], 2, "--threads 0 is too small"),
    (["prune", "embedded", "--out", "x", "--recipe", "nowhere.yaml"], 2, "no such recipe file"),
    (["prune", "embedded", "--out", "x", "--recipe", "RECIPE"], 2, "did you mean 'sparsity'?"),
    (["prune", "embedded", "--out", "x", "--plan", "nowhere.json"], 2, "no such plan file"),
    (["recover", "embedded", "--out", "x", "--how", "distil"], 2, "did you mean 'distill'?"),
    (["recover", "embedded", "--out", "x", "--optimizer", "adam"], 2, "did you mean 'adamw'?"),
    (["recover", "embedded", "--out", "x", "--loss", "kl"], 2, "did you mean 'logits'?"),
    (["recover", "embedded", "--out", "x", "--device", "tpu"], 2, "--device tpu is unknown"),
    (["eval", "embedded", "--data", "stdlib", "--device", "tpu"], 2, "--device tpu is unknown"),
    (["eval", "embedded", "--data", "gone.txt"], 2, "data file 'gone.txt' does not exist"),
    (["eval", "embedded", "--tasks", "gone.jsonl"], 2, "task file 'gone.jsonl' does not exist"),
    (["eval", "embedded", "--tasks", ","], 2, "--tasks is empty"),
    (["recover", "embedded", "--out", "x", "--data", "gone.txt"], 2, "data file 'gone.txt' does not exist"),
    (["prune", "embedded", "-s", "0.5", "--out", "x", "--calibrate", "stdlib:0.5,gone.txt:0.5"], 2, "does not exist"),
    (["generate", "embedded", "Once", "--tokens", "0"], 2, "--tokens 0 is too small"),
    (["generate", "embedded", "Once", "--dtype", "int3"], 2, "--dtype int3 is unknown"),
    (["sensitivity", "embedded", "--method", "wnada"], 2, "did you mean 'wanda'?"),
    (["sensitivity", "embedded", "--sites", "heads"], 2, "did you mean 'query_head'?"),
    (["search", "--help"], 0, "--want"),
    (["search", "embedded", "--want", "params=0.5x"], 2, "add --out DIR"),
    (["search", "embedded", "--want", "parms=0.5x", "--out", "x"], 2, "did you mean 'params'?"),
    (
        ["search", "embedded", "--want", "params=0.5x", "--out", "x", "--sites", "hidden"],
        2,
        "hidden dimensions go beside something else",
    ),
    (["search", "embedded", "--want", "params=0.5x", "--out", "x", "--sparsity", "0.5"], 2, "No such option"),
    (["search", "embedded", "--want", "task:gone.jsonl>=0.9x", "--out", "x"], 2, "'gone.jsonl' does not exist"),
    (["compress", "embedded", "--out", "x", "--values", "int4"], 2, "did you mean 'int8'?"),
    (["compress", "embedded"], 2, "add --out DIR"),
    (["export", "embedded", "--out", "x"], 2, "no format given; --to is one of padded, gguf"),
    (["export", "embedded", "--to", "ggml", "--out", "x"], 2, "did you mean 'gguf'?"),
    (["export", "embedded", "--to", "gguf"], 2, "add --out DIR"),
    (["export", "embedded", "--to", "gguf", "--out", "x", "--dry-run"], 2, "--dry-run is for --to hub"),
    (["export", "embedded", "--to", "onnx", "--type", "q8_0", "--out", "x"], 2, "type q8_0: onnx has f32, f16"),
    (["export", "embedded", "--to", "hub"], 2, "--repo org/name says where to"),
    (["export", "embedded", "--to", "hub", "--repo", "org/name", "--out", "x"], 2, "leave --out away"),
    (["export", "nowhere", "--to", "gguf", "--out", "x"], 2, "no such folder"),
    (["prune", "embedded", "-s", "0.5", "--out", "x", "--for", "ollama"], 2, "did you mean 'llama.cpp'?"),
    (["inspect", "embedded", "--for", "trt"], 2, "did you mean 'tensorrt-llm'?"),
    (["sweep", "SWEEP", "--out", "x", "--dry-run"], 0, "sparsity-0.5 to do"),
    (["sweep", "SWEEP"], 2, "add --out DIR"),
    (["sweep", "nowhere.yaml", "--out", "x"], 2, "no such sweep file"),
    (["sweep", "RECIPE", "--out", "x"], 2, "sweep key 'sparsty' is unknown"),
    (["sweep", "SWEEP", "--out", "x", "--on", "rya"], 2, "did you mean 'ray'?"),
    (["sweep", "SWEEP", "--out", "x", "--trial-gpus", "1"], 2, "go with --on ray"),
    (["sweep", "SWEEP", "--out", "x", "--trial-cpus", "0"], 2, "trial_cpus = 0"),
    (["bench", "embedded", "--batches", "none"], 2, "give whole numbers from 1 to"),
]
ASKS = """
import contextlib, io, json, sys
from secateur.cli.app import main
found = []
for words in json.load(sys.stdin):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(words)
        except SystemExit as end:
            code = end.code
    heavy = [name for name in ("torch", "transformers", "numpy") if name in sys.modules]
    found.append((code, out.getvalue(), heavy))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, list[str]]]:
    folder = tmp_path_factory.mktemp("asked")
    done = folder / "done"
    done.mkdir()
    site = {"name": "layers.0.mlp.up_proj", "kind": "weight", "layer": 0, "units": 4, "kept": 4, "sparsity": 0.5}
    (done / "report.json").write_text(
        json.dumps({"recipe": {}, "sites": [site | {"method": "wanda"}]}), encoding="utf-8"
    )
    (folder / "recipe.yaml").write_text("sparsty: 0.5\n", encoding="utf-8")
    sweep = "base: {model: embedded, sites: channel}\ngrid: {sparsity: [0.5]}\n"
    (folder / "sweep.yaml").write_text(sweep, encoding="utf-8")
    names = {"DONE": str(done), "RECIPE": str(folder / "recipe.yaml"), "SWEEP": str(folder / "sweep.yaml")}
    asked = [[names.get(word, word) for word in words] for words, _, _ in ANSWERS]
    ran = subprocess.run(
        [sys.executable, "-c", ASKS],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=folder,
        check=True,
    )
    return json.loads(ran.stdout)


@pytest.mark.parametrize("index", range(len(ANSWERS)), ids=lambda i: " ".join(ANSWERS[i][0]))
def test_it_answers_without_torch(index: int, answers: list[tuple[int, str, list[str]]]) -> None:
    words, code, says = ANSWERS[index]
    ended, said, heavy = answers[index]
    assert (ended, heavy) == (code, []), said
    assert says in " ".join(said.split())
    assert code == 0 or said.count("\n") == 1, words
