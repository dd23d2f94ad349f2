"""Decoding speed and quality of a real model's forms on a CPU: dense, without zeros, narrower, and llama.cpp's.

    python benchmarks/decode.py --model path/to/SmolLM2-135M --work decode
    python benchmarks/decode.py --model path/to/SmolLM2-135M --work decode --parts make
    python benchmarks/decode.py --model path/to/SmolLM2-135M --work decode --threads 1

Parts: `make` prunes by SparseGPT (32 x 512 tokens of C4) to 50, 60 and 70 % zeros and cuts a quarter of the channels,
compresses with bf16 and int8 values, exports GGUF; `quality` takes the perplexity of each form on WikiText-2, with
every token through the kernels that decode; `speed` decodes in all forms, in turns, on a machine that does nothing
else. Results go to results/decode.{json,md}, a row for each form and number of threads. The environment of llama.cpp
is the one that clients.py makes below the same --work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _client_environments import NODE_PACKAGE, python_of, variables
from _docs import between_marks
from _protocol import window_perplexity
from peers import machine
from real import DATA
from transformers import AutoTokenizer

import secateur
from secateur.benchmarking.turns import Form, FormProcess
from secateur.benchmarking.worker import SEGMENTS
from secateur.runtime.few_rows import FewRows
from secateur.runtime.linear import PackedLinear

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "runtime.md"
SHARES = (50, 60, 70)
PARTS = ("make", "quality", "speed")
TYPES = ("bf16", "q8_0", "q4_0")
CONTEXT, TOKENS, WINDOWS, LENGTH = 32, 48, 8, 512
MARK = "answer:"


class Kind(NamedTuple):
    """A form: its folder below --work (`dense` is the model itself), or a GGUF file of it."""

    name: str
    folder: str
    dtype: str = "bfloat16"
    way: str = "eager"
    runtime: str = "dense"


def kinds() -> Iterator[Kind]:
    yield Kind("dense, torch bf16", "dense")
    yield Kind("dense, torch bf16, compiled and frozen", "dense", way="frozen")
    yield Kind("dense, torch fp32", "dense", "float32")
    yield Kind("a quarter of the channels gone, torch bf16", "channels")
    for values in ("bf16", "int8"):
        for share in SHARES:
            yield Kind(f"{share} % zeros, compressed, {values}", f"zeros-{share}-{values}", runtime="compressed")
    for kind in TYPES:
        yield Kind(f"dense, llama.cpp {kind}", f"dense-{kind}", way="llama.cpp")
    yield Kind("a quarter of the channels gone, llama.cpp q8_0", "channels-q8_0", way="llama.cpp")


def make(told: argparse.Namespace) -> None:
    """Everything that is measured, where it isn't there yet."""
    cut = (
        "--calibrate",
        str(DATA / "web" / "c4.jsonl"),
        "--samples",
        "32",
        "--length",
        str(LENGTH),
        "--evaluate",
        "none",
        "--no-speed",
    )
    for share in SHARES:
        zeros = told.work / f"zeros-{share}"
        run("prune", str(told.model), "--method", "sparsegpt", "--sparsity", str(share / 100), *cut, out=zeros)
        run("compress", str(zeros), out=told.work / f"zeros-{share}-bf16")
        run("compress", str(zeros), "--values", "int8", out=told.work / f"zeros-{share}-int8")
    narrow = told.work / "channels"
    given = ("--sites", "channel", "--sparsity", "0.25", "--quality", "fast", "--for", "llama.cpp")
    run("prune", str(told.model), *given, *cut, out=narrow)
    for kind in kinds():
        if kind.way == "llama.cpp":
            source, _, number = kind.folder.partition("-")
            folder = told.model if source == "dense" else told.work / source
            python, environment = python_of("llama.cpp", told.work), variables("llama.cpp", told.work, told.threads)
            how = ("export", str(folder), "--to", "gguf", "--type", number)
            run(*how, out=told.work / kind.folder, python=python, environment=environment)


def run(*words: str, out: Path, python: Path | None = None, environment: dict[str, str] | None = None) -> None:
    if any(file for kind in ("*.safetensors", "*.gguf") for file in out.glob(kind)):
        return
    words = (*words, "--resume") if out.exists() else words
    print(" ".join(words[:1]), out.name, flush=True)
    command = [str(python or sys.executable), "-m", "secateur", *words, "--out", str(out), "--quiet"]
    subprocess.run(command, check=True, env=environment)


def quality(told: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Perplexity of every torch form, by the kernels that decode. (llama.cpp's own is found where it's timed.)"""
    tokenizer = AutoTokenizer.from_pretrained(told.model)
    found: dict[str, dict[str, Any]] = {}
    for kind in kinds():
        if kind.way != "eager":
            continue
        model = secateur.load(place(told, kind), dtype=kind.dtype, runtime=kind.runtime)
        for module in model.modules():
            if isinstance(module, PackedLinear):
                module.matrix.limit = sys.maxsize
            if isinstance(module, FewRows):
                module.limit = sys.maxsize
        with torch.inference_mode():
            perplexity = window_perplexity(model, tokenizer, wikitext(), LENGTH, WINDOWS)
        found[kind.name] = {"perplexity": perplexity}
        print(f"{kind.name}: perplexity {perplexity:.2f}", flush=True)
    return found


def place(told: argparse.Namespace, kind: Kind) -> Path:
    return told.model if kind.folder == "dense" else told.work / kind.folder


def wikitext() -> str:
    return (DATA / "wikitext-2" / "test.txt").read_bytes()[:40_000].decode("utf-8", "ignore")


def speed(told: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Tokens a second of each form: a segment of each, then the next of each."""
    given = [kind for kind in kinds() if kind.way == "llama.cpp"]
    rates: dict[str, list[float]] = {kind.name: [] for kind in given}
    settings: dict[str, Any] = {"batches": (1,), "contexts": (CONTEXT,), "tokens": TOKENS, "limit": 60.0}
    settings["threads"] = told.threads
    with ExitStack() as stack:
        llama = stack.enter_context(Llama(told, given))
        forms = {}
        for kind in kinds():
            if kind.way != "llama.cpp":
                form = Form("dense", place(told, kind), kind.way, kind.runtime)
                process = FormProcess(form, {**settings, "dtype": kind.dtype})  # type: ignore[typeddict-item]
                forms[kind.name] = stack.enter_context(process)
        for form in forms.values():
            form.go_on()  # loads
        for segment in range(SEGMENTS + 1):
            for form in forms.values():
                form.go_on()  # up to a segment; after the last one it tells
            for number, kind in enumerate(given):
                if segment < SEGMENTS:
                    rates[kind.name].append(llama.ask(str(number))["rate"])
    rows: dict[str, dict[str, Any]] = {}
    for name, form in forms.items():
        if "error" in form.found:
            raise SystemExit(f"{name}: {form.found['error']}")
        [row] = form.found["rows"]
        low, high = row["decode_range"]
        rows[name] = {"tokens_per_s": row["decode_tokens_per_s"], "range": [low, high]}
        rows[name] |= {"first_token_seconds": row["first_token_seconds"]}
        rows[name] |= {"bytes": form.found["resident_weight_bytes"]}
    for kind, about in zip(given, llama.about["rows"], strict=True):
        own = rates[kind.name]
        rows[kind.name] = {"tokens_per_s": statistics.median(own), "range": [min(own), max(own)]}
        rows[kind.name] |= {"bytes": about["bytes"], "perplexity": about["perplexity"]}
    return rows


class Llama:
    """llama.cpp in a process of its own, with all its files loaded."""

    def __init__(self, told: argparse.Namespace, given: list[Kind]) -> None:
        python_of("llama.cpp", told.work)
        package = (told.work / "environments" / "llama.cpp" / "node_modules" / NODE_PACKAGE).resolve()
        files = [str(next((told.work / kind.folder).glob("*.gguf")).resolve()) for kind in given]
        ids = AutoTokenizer.from_pretrained(told.model)(wikitext(), verbose=False)["input_ids"]
        windows = [ids[at : at + LENGTH] for at in range(0, LENGTH * WINDOWS, LENGTH)]
        task = {"files": files, "windows": windows, "prompt": list(range(1000, 1000 + CONTEXT)), "new": TOKENS}
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(task | {"threads": told.threads}, file)
        self._task = Path(file.name)
        self._process = subprocess.Popen(
            ["node", str(HERE / "_decode_llama.mjs"), str(package), file.name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=variables("llama.cpp", told.work, told.threads),
        )  # fmt: skip
        self.about = self.ask()

    def ask(self, word: str = "") -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if word:
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(MARK):
                return dict(json.loads(line.removeprefix(MARK)))
        raise SystemExit("llama.cpp ended without an answer")

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._task.unlink()


def table(record: dict[str, Any]) -> str:
    """The rows as Markdown, for each number of threads."""
    blocks = []
    for threads, found in sorted(record["speed"].items()):
        rows, load = found["rows"], found["load"]
        dense = rows["dense, torch bf16"]["tokens_per_s"]
        lines = ["| form | tokens/s | range | beside dense bf16 | weights, MB | perplexity |"]
        lines.append("| --- | ---: | --- | ---: | ---: | ---: |")
        for kind in kinds():
            row = rows[kind.name]
            told = record["quality"].get(kind.name, row).get("perplexity")
            low, high = row["range"]
            cells = [kind.name, f"{row['tokens_per_s']:.1f}", f"{low:.1f} to {high:.1f}"]
            cells += [f"{row['tokens_per_s'] / dense:.2f}", f"{row['bytes'] / 1e6:.0f}"]
            lines.append(f"| {' | '.join(cells)} | {'' if told is None else f'{told:.2f}'} |")
        about = f"{record['machine']['cpu']}, {threads} thread{'s' * (threads != '1')}, load before {load:.2f}"
        blocks.append("\n".join([f"{about}; context {CONTEXT}, {SEGMENTS} segments of {TOKENS} tokens:", "", *lines]))
    return "\n\n".join(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--parts", default=PARTS, type=lambda text: text.split(","))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--draw", action="store_true", help="only write the tables anew")
    told = parser.parse_args()
    told.work, told.model = told.work.resolve(), told.model.absolute()
    file = RESULTS / "decode.json"
    record = json.loads(file.read_text()) if file.is_file() else {"quality": {}, "speed": {}}
    parts = () if told.draw else told.parts
    torch.set_num_threads(told.threads)
    if "make" in parts:
        make(told)
    if "quality" in parts:
        record["quality"] |= quality(told)
    if "speed" in parts:
        load = os.getloadavg()[0]
        record["speed"][str(told.threads)] = {"load": load, "rows": speed(told)}
    if parts:
        record |= {"model": told.model.name, "machine": machine()}
        file.write_text(json.dumps(record, indent=1) + "\n")
    text = table(record)
    (RESULTS / "decode.md").write_text(f"# Decoding\n\n`python benchmarks/decode.py`, {record['model']}.\n\n{text}\n")
    between_marks(PAGE, "<!-- decode: begin -->", "<!-- decode: end -->", text)


if __name__ == "__main__":
    main()
