"""A real model: SmolLM2-135M pruned by Secateur and by its peers on the same tokens, judged on text of five kinds.

    python benchmarks/real.py --setup                  once: build the peers' environment from peers.lock
    python benchmarks/real.py --model MODEL            everything; MODEL is what shared/tools/real_model.py writes
    python benchmarks/real.py --model MODEL --samples 128 --parts weights --names fast balanced
    python benchmarks/real.py --draw                   only the tables and the picture, from what is there

Parts: `weights` (50 %), `pattern` (2:4), `channels` (25 % of the FFN channels). Calibration: --samples sequences of
512 tokens of C4, drawn once and read by every tool from one file; the last 40 documents of that file are held out. A
run called 'balanced, trained' is followed by 300 steps of distillation on the other documents. Each run is a process
of its own, in fp32 or, with --dtype bfloat16, in bf16, which some CPUs multiply faster, and then rows of their own.
What it saved is judged, in fp32, by this benchmark and not by a party. A row goes to results/real.json at once, and
what is there isn't measured again. The tables also go into docs/quality.md, and into docs/runtime.md what `secateur
bench` has measured of this model at 50 %, in results/real-bench-*.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _docs import between_marks
from _process import Watched, watch
from _protocol import calibration_ids, read_texts, window_perplexity, write_calibration
from _real_tables import PARTS, SETS, Row, bench_table, picture, tables
from peers import HERE, PEER_PYTHON, ROOT, machine, our_figures, peer_figures
from peers import setup as build_environment
from transformers import AutoModelForCausalLM, AutoTokenizer

DATA = ROOT.parent / "shared" / "data"
RESULTS = HERE / "results"
DOCS = ROOT / "docs" / "quality.md"
RUNTIME = ROOT / "docs" / "runtime.md"
BEGIN, END = "<!-- real: begin -->", "<!-- real: end -->"
LENGTH, HELD_OUT = 512, 40
WINDOWS = 20  # of each text at most
PRESETS = ("fast", "balanced", "best")
TRAINED = "balanced, trained"
# The rate is about what the range test picks for 25 % of the channels; that test would take a quarter of an hour.
TRAINING = {"how": "distill", "length": 256, "learning_rate": 8e-4}


class Place(NamedTuple):
    """What a run is given: the model, a file of calibration tokens and how many sequences it has, where the result
    goes, a folder that outlives the run, and the number format."""

    model: Path
    calibration: Path
    samples: int
    out: Path
    work: Path
    dtype: str


Command = Callable[[Place], list[str]]


class Run(NamedTuple):
    part: str
    tool: str
    name: str
    command: Command


def ours(*flags: str) -> Command:
    def command(at: Place) -> list[str]:
        told = [sys.executable, "-m", "secateur", "prune", str(at.model), *flags, "--calibrate", str(at.calibration)]
        told += ["--length", str(LENGTH), "--samples", str(at.samples), "--dtype", at.dtype, "--evaluate", "none"]
        return [*told, "--no-explain", "--no-speed", "--quiet", "--out", str(at.out), "--overwrite"]

    return command


def trained(quality: str, *flags: str) -> Command:
    """Pruned, then trained by `TRAINING`, and what `recover` does unless told otherwise."""

    def command(at: Place) -> list[str]:
        recipe, documents = at.work / "trained.yaml", at.work / "documents.jsonl"
        documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in calibration_documents()))
        recipe.write_text(json.dumps({"recover": {**TRAINING, "data": str(documents)}}))
        return ours("--quality", quality, *flags, "--recipe", str(recipe))(at)

    return command


def peer(script: str, *flags: str) -> Command:
    def command(at: Place) -> list[str]:
        told = [str(at.model), str(at.calibration), str(at.out), *flags, "--dtype", at.dtype]
        return [str(PEER_PYTHON), str(HERE / script), *told]

    return command


def refitted(importance: str) -> Command:
    """The channels that torch-pruning has kept, repaired as `fast` does."""

    def command(at: Place) -> list[str]:
        kept, plan = at.work / f"kept-{importance}.json", at.work / "plan.json"
        if not kept.is_file():
            sys.exit(f"the refit of torch-pruning's {importance} needs its own run before, with the same --work")
        plan.write_text(json.dumps(plan_of(at.model, json.loads(kept.read_text()))))
        return ours("--plan", str(plan), "--quality", "fast")(at)

    return command


def calibration_documents() -> list[str]:
    """All of C4 but the documents that are judged on."""
    return read_texts(DATA / "web" / "c4.jsonl")[:-HELD_OUT]


def plan_of(model: Path, kept: list[list[int]]) -> dict[str, Any]:
    """Kept channels of each layer as a plan that `secateur prune --plan` replays."""
    config = json.loads((model / "config.json").read_text())
    width = config["intermediate_size"]
    entries = [
        {"site": f"layers.{i}.channel", "kind": "channel", "layer": i, "units": width, "method": "taylor"}
        | {"sparsity": round(1 - len(keep) / width, 6), "keep": sorted(keep)}
        for i, keep in enumerate(kept)
    ]
    about = {"model_type": config["model_type"], "layers": len(kept), "digest": ""}
    return {"version": 1, "model": about, "calibration": {}, "layers": list(range(len(kept))), "entries": entries}


def runs() -> Iterator[Run]:
    """All runs, in the order in which they are made: a tool and its peer beside each other."""
    for part, how, masks in (("weights", ("--sparsity", "0.5"), "0:0"), ("pattern", ("--pattern", "2:4"), "2:4")):
        for method in ("wanda", "sparsegpt"):
            given = ("--method", method, "--sparsity", "0.5", "--pattern", masks)
            yield Run(part, "llm-compressor", method, peer("_peer_llmcompressor.py", *given))
            yield Run(part, "secateur", method, ours("--method", method, *how))
        yield from (Run(part, "secateur", quality, ours("--quality", quality, *how)) for quality in PRESETS[1:])
        yield Run(part, "secateur", TRAINED, trained("balanced", *how))
    for importance in ("magnitude", "taylor"):
        asked = ("--importance", importance, "--sparsity", "0.25")
        yield Run("channels", "torch-pruning", importance, peer("_peer_torch_pruning.py", *asked))
        yield Run("channels", "torch-pruning", f"{importance} + our refit", refitted(importance))
    channels = ("--sites", "channel", "--sparsity", "0.25")
    for quality in PRESETS:
        yield Run("channels", "secateur", quality, ours("--quality", quality, *channels))
    yield Run("channels", "secateur", TRAINED, trained("balanced", *channels))


def evaluation_texts() -> dict[str, str]:
    """One text a kind. Of C4, what calibration doesn't see; of the others nothing was calibrated on."""
    wikitext = (DATA / "wikitext-2" / "test.txt").read_bytes()[:40_000].decode("utf-8", "ignore")
    found = {
        "WikiText-2": wikitext,
        "C4": "\n\n".join(read_texts(DATA / "web" / "c4.jsonl")[-HELD_OUT:])[:24_000],
        "stories": "\n\n".join(read_texts(DATA / "tinystories" / "eval.jsonl")[:30]),
        "code": "\n\n".join(read_texts(DATA / "code" / "github.jsonl")[-24:])[:20_000],
        "plays": (DATA / "shakespeare" / "input.txt").read_text(encoding="utf-8")[-20_000:],
    }
    assert set(found) == set(SETS)
    return found


def judge(folder: Path, model: Path, texts: dict[str, str], own_class: bool) -> dict[str, Any]:
    """Perplexity of each text in fp32, the share of zeros in the decoder's matrices, and how many numbers those are.

    Args:
        own_class: a result with widths that differ from layer to layer brings the file of its class.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=own_class).eval()
    head = loaded.get_output_embeddings()
    matrices = [m.weight for m in loaded.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    numbers = sum(weight.numel() for weight in matrices)
    return {
        "perplexity": {
            name: window_perplexity(loaded, tokenizer, text, LENGTH, WINDOWS) for name, text in texts.items()
        },
        "zeros": sum(int((weight == 0).sum()) for weight in matrices) / numbers,
        "decoder_numbers": numbers,
    }


def measure(run: Run, at: Place, threads: int, texts: dict[str, str]) -> Row:
    """One run and what the judge says of what it saved."""
    command = run.command(at)
    watched: Watched = watch(command, threads, ROOT / "src" if command[0] == sys.executable else None)
    seconds, above = (peer_figures if command[0] == str(PEER_PYTHON) else our_figures)(watched, at.out)
    if (at.out / "kept.json").is_file():
        (at.work / f"kept-{run.name}.json").write_text((at.out / "kept.json").read_text())
    found = judge(at.out, at.model, texts, command[0] == sys.executable)
    return Row(
        run.part,
        run.tool,
        run.name,
        at.samples,
        threads,
        seconds,
        watched.cpu,
        above,
        watched.load,
        dtype=at.dtype,
        **found,
    )


def read() -> list[Row]:
    file = RESULTS / "real.json"
    return [Row(**row) for row in json.loads(file.read_text())["rows"]] if file.is_file() else []


def write(rows: list[Row]) -> None:
    order = {(run.part, run.tool, run.name): place for place, run in enumerate(runs())}
    rows.sort(key=lambda r: (r.samples, r.dtype != "float32", order.get((r.part, r.tool, r.name), -1)))
    about = {"length": LENGTH, "texts": list(SETS), **machine()}
    (RESULTS / "real.json").write_text(
        json.dumps({"measured_on": about, "rows": [asdict(r) for r in rows]}, indent=1)
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", action="store_true", help="build the peers' environment and stop")
    parser.add_argument("--draw", action="store_true", help="only the tables, from results/real.json")
    parser.add_argument("--model", type=Path, help="the folder of SmolLM2-135M")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--names", nargs="+", help="only these methods or presets, as the table names them")
    parser.add_argument("--tools", nargs="+", default=["secateur", "llm-compressor", "torch-pruning"])
    parser.add_argument("--samples", type=int, default=32, help="sequences of 512 tokens to calibrate on")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "real", help="for what later runs need")
    told = parser.parse_args()
    if not (told.setup or told.draw) and (told.model is None or not (told.model / "config.json").is_file()):
        parser.error("--model should name the folder that shared/tools/real_model.py writes")
    return told


def wanted(told: argparse.Namespace, rows: list[Row]) -> Iterator[Run]:
    """The runs that were asked for and aren't there."""
    there = {(row.part, row.tool, row.name, row.samples, row.dtype) for row in rows}
    for run in runs():
        asked = run.part in told.parts and run.tool in told.tools and (not told.names or run.name in told.names)
        if asked and (run.part, run.tool, run.name, told.samples, told.dtype) not in there:
            yield run


def main() -> None:
    told = arguments()
    if told.setup:
        build_environment()
        return
    if not told.draw:
        told.work.mkdir(parents=True, exist_ok=True)
        calibration, texts = told.work / f"calibration-{told.samples}.jsonl", evaluation_texts()
        write_calibration(calibration_ids(told.model, calibration_documents(), told.samples), calibration)
        torch.set_num_threads(told.threads)
        rows = read()
        if not any(row.part == "dense" for row in rows):
            found = judge(told.model, told.model, texts, False)
            rows.append(Row("dense", "", "dense", 0, told.threads, 0.0, 0.0, 0, 0.0, **found))
            write(rows)
        for run in wanted(told, rows):
            with tempfile.TemporaryDirectory() as folder:
                at = Place(told.model, calibration, told.samples, Path(folder) / "out", told.work, told.dtype)
                row = measure(run, at, told.threads, texts)
            rows = [*read(), row]  # another part may have been measured meanwhile
            write(rows)
            print(row, flush=True)
    picture(read(), RESULTS / "real.svg")
    between_marks(DOCS, BEGIN, END, tables(read()))
    between_marks(RUNTIME, BEGIN, END, bench_table(RESULTS))


if __name__ == "__main__":
    main()
