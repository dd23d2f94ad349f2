"""Secateur beside llm-compressor: the same model, calibration tokens, threads and judge.

    python benchmarks/peers.py --setup     once: build the peer's own environment from peers.lock
    python benchmarks/peers.py             compare, print the table, write results/peers.{json,md}

Each run is a process of its own. This parent draws the calibration tokens once and writes them to a file that both
tools read, looks at the memory of each process from outside, and computes the perplexity of what each one saved.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from _peers_table import OURS, PEER, Record, page, table
from _process import Watched, watch
from _protocol import calibration_ids, context_of, judge, read_texts, write_calibration

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MODELS = ROOT.parent / "shared" / "models"
STORIES = ROOT.parent / "shared" / "data" / "tinystories"
PEER_ENV = ROOT / ".venv-peers"
PEER_PYTHON = PEER_ENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
LOCK = HERE / "peers.lock"


@dataclass(frozen=True)
class Case:
    """What is pruned and how: `target` is a sparsity such as 0.5, or a pattern such as 2:4."""

    model: Path
    method: str
    target: str

    @property
    def pattern(self) -> tuple[int, int] | None:
        """(zeros, group) of an N:M pattern, else None."""
        zeros, colon, group = self.target.partition(":")
        return (int(zeros), int(group)) if colon else None

    @property
    def sparsity(self) -> float:
        return self.pattern[0] / self.pattern[1] if self.pattern else float(self.target)


def peer_command(case: Case, calibration: Path, out: Path) -> list[str]:
    worker = [PEER_PYTHON, HERE / "_peer_llmcompressor.py", case.model, calibration, out]
    pattern = case.target if case.pattern else "0:0"
    return [*map(str, worker), "--method", case.method, "--sparsity", str(case.sparsity), "--pattern", pattern]


def our_command(case: Case, calibration: Path, out: Path) -> list[str]:
    """`secateur prune` on the same tokens, in fp32 as the peer, without an evaluation, which the peer has none of."""
    command = [sys.executable, "-m", "secateur", "prune", str(case.model), "--method", case.method]
    command += ["--pattern", case.target] if case.pattern else ["--sparsity", str(case.sparsity)]
    command += ["--calibrate", str(calibration), "--length", str(context_of(case.model)), "--dtype", "float32"]
    return [*command, "--evaluate", "none", "--quiet", "--out", str(out), "--overwrite"]


def peer_figures(run: Watched, out: Path) -> tuple[float, int]:
    """Seconds of the pruning alone, and bytes at its peak above the peak before it (libraries, model, tokens)."""
    told = json.loads(run.stdout.splitlines()[-1])
    begin, end = told["window"]
    return end - begin, run.peak(begin, end) - run.peak(end=begin)


def our_figures(run: Watched, out: Path) -> tuple[float, int]:
    """The same two figures, from the stages between opening and saving that Secateur's own report lists; those of a
    training count."""
    stages = json.loads((out / "report.json").read_text())["stages"]
    names = [stage["name"] for stage in stages]
    saved = "save the trained model" if "save the trained model" in names else "save"
    first, last = names.index("open") + 1, names.index(saved)
    before, during = ([stage["peak_memory_bytes"] for stage in part] for part in (stages[:first], stages[first:last]))
    return sum(stage["seconds"] for stage in stages[first:last]), max(during) - max(before)


COMMANDS: dict[str, Callable[[Case, Path, Path], list[str]]] = {PEER: peer_command, OURS: our_command}
FIGURES: dict[str, Callable[[Watched, Path], tuple[float, int]]] = {PEER: peer_figures, OURS: our_figures}


def measure(tool: str, case: Case, calibration: Path, texts: list[str], threads: int) -> Record:
    """Run one tool once in a fresh process and have the judge look at what it saved."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pruned"
        source = ROOT / "src" if tool == OURS else None
        run = watch(COMMANDS[tool](case, calibration, out), threads, source)
        seconds, above = FIGURES[tool](run, out)
        found = judge(out, case.model, texts, case.pattern)
    return Record(
        tool=tool,
        model=case.model.name,
        method=case.method,
        target=case.target,
        prune_seconds=seconds,
        process_seconds=run.seconds,
        cpu_seconds=run.cpu,
        peak_bytes=run.peak(),
        above_bytes=above,
        perplexity=found["perplexity"],
        sparsity=found["sparsity"],
        pattern_held=found.get("pattern_held"),
        load_before=run.load,
    )


def compare(args: argparse.Namespace) -> tuple[list[Record], dict[str, Any]]:
    """All runs of all cases, the order of the tools alternating, and what they were measured on."""
    stories, texts = read_texts(args.calibrate), read_texts(args.eval)
    records: list[Record] = []
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            calibration = Path(folder) / f"{model.name}.jsonl"
            digests[model.name] = write_calibration(calibration_ids(model, stories), calibration)
            for case in (Case(model, method, target) for target in args.targets for method in args.methods):
                for run in range(args.runs):
                    for tool in args.tools if run % 2 == 0 else args.tools[::-1]:
                        records.append(measure(tool, case, calibration, texts, args.threads))
                        print(records[-1], file=sys.stderr, flush=True)
    return records, machine() | {"threads": args.threads, "runs": args.runs, "calibration_sha256": digests}


def machine() -> dict[str, Any]:
    """Processor, memory and the versions of both sides, without names or paths of this machine."""
    cpu = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    pins = dict(row.split("==") for row in LOCK.read_text().split())
    return {
        "cpu": name[1] if name else platform.processor(),
        "cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {
            OURS: {package: version(package) for package in ("torch", "transformers")},
            PEER: {package: pins[package] for package in ("llmcompressor", "torch", "transformers")},
        },
    }


def setup() -> None:
    """Build the peer's environment. torch goes first, with what it needs on this platform, then the exact rest."""
    venv.create(PEER_ENV, with_pip=True, clear=True)
    torch = next(row for row in LOCK.read_text().split() if row.startswith("torch=="))
    for wanted in ([torch], ["--no-deps", "-r", str(LOCK)]):
        subprocess.run([str(PEER_PYTHON), "-m", "pip", "install", *wanted], check=True)


def a_model(text: str) -> Path:
    """A checkpoint folder, or the name of one of the shared test models."""
    for path in (Path(text), MODELS / text):
        if (path / "config.json").is_file():
            return path.resolve()
    raise argparse.ArgumentTypeError(f"{text} is no checkpoint folder with a config.json, nor a shared model")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", action="store_true", help="build the peer's environment and stop")
    parser.add_argument("--models", nargs="+", type=a_model, default=["stories3M-fp16", "stories260K"])
    parser.add_argument("--methods", nargs="+", choices=["sparsegpt", "wanda"], default=["sparsegpt", "wanda"])
    parser.add_argument("--targets", nargs="+", default=["0.5", "2:4"], help="sparsities, or patterns N:M")
    parser.add_argument("--tools", nargs="+", choices=[PEER, OURS], default=[PEER, OURS])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibrate", type=Path, default=STORIES / "calibrate.jsonl", help="JSONL with `text`")
    parser.add_argument("--eval", type=Path, default=STORIES / "eval.jsonl", help="JSONL with `text`")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for peers.json and peers.md")
    args = parser.parse_args()
    if args.setup:
        return args
    args.models = [a_model(model) if isinstance(model, str) else model for model in args.models]
    for path in (args.calibrate, args.eval):
        if not path.is_file():
            parser.error(f"{path} does not exist; give a JSONL file with a `text` in each line")
    if PEER in args.tools and not PEER_PYTHON.is_file():
        parser.error(f"the peer's environment {PEER_ENV.name} does not exist; run with --setup first")
    return args


def main() -> None:
    args = arguments()
    if args.setup:
        return setup()
    records, measured_on = compare(args)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"measured_on": measured_on, "runs": [asdict(record) for record in records]}
    (args.out / "peers.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "peers.md").write_text(page(records, measured_on))
    print(table(records))
    return None


if __name__ == "__main__":
    main()
