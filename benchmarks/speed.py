"""What a prune stage costs over the work that it can't do without: its forward passes, products and solves.

    python benchmarks/speed.py                          six layers of SmolLM2-135M's shape, 32 x 512 tokens
    python benchmarks/speed.py --shape llama3-8b        one layer of Llama 3 8B's shape
    python benchmarks/speed.py --methods wanda --runs 5

Weights are random. In turns, each run in a process of its own: `secateur prune`, whose prune stage counts, and the
bare work on the same tokens: plain forward passes of the same layers in batches as wide, as many and as far as the
method needs them, `x.T @ x` of each distinct input (and the products with the dense model's), and the method's own
solves of the same matrices. A share of 1 is a stage that costs nothing else. Results go to results/speed.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from _checkpoints import make, make_tokens
from _process import watch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SHAPES: dict[str, dict[str, int]] = {
    "smollm2-135m": {"layers": 6, "hidden": 576, "ffn": 1536, "heads": 9, "kv_heads": 3},
    "llama3-8b": {"layers": 1, "hidden": 4096, "ffn": 14336, "heads": 32, "kv_heads": 8},
}
METHODS = {
    "wanda": ("--method", "wanda"),
    "sparsegpt": ("--method", "sparsegpt"),
    "balanced": ("--quality", "balanced"),
}
GROUPS = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",),
          ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))  # fmt: skip
STAGES = tuple(group[0] for group in GROUPS)  # one Linear for each distinct input


class Stop(Exception):
    """What was asked for has been computed."""


def pruned(model: Path, tokens: Path, samples: int, length: int, method: str, threads: int) -> float:
    """Seconds of the prune stage of one run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        told = [sys.executable, "-m", "secateur", "prune", str(model), *METHODS[method], "--sparsity", "0.5"]
        told += ["--calibrate", str(tokens), "--samples", str(samples), "--length", str(length), "--dtype", "float32"]
        told += ["--general-text", "0", "--evaluate", "none", "--no-explain", "--no-speed", "-q", "--out", str(out)]
        watch(told, threads, HERE.parent / "src")
        stages = json.loads((out / "report.json").read_text())["stages"]
    return sum(stage["seconds"] for stage in stages if stage["name"] == "prune")


def bare(model: Path, tokens: Path, method: str) -> dict[str, float]:
    """Seconds of the passes, the products and the solves that the method can't do without."""
    from transformers import AutoModelForCausalLM

    from secateur.calibration.stream import batches_of

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = torch.tensor([json.loads(line)["input_ids"] for line in tokens.read_text().splitlines()])
    batches = batches_of(ids)
    spent = {"passes": 0.0, "products": 0.0, "solves": 0.0}
    with torch.inference_mode():
        states, calls = entering(loaded, batches)
        for layer in loaded.model.layers:
            inputs = [inputs_of(layer, hidden, calls) for hidden in states]
            with timed(spent, "passes"):
                work(layer, states, calls, method)
            with timed(spent, "products"):
                products(inputs, method)
            solve(layer, inputs, method, spent)
            states = [layer(hidden, **calls) for hidden in states]
    return spent


@contextmanager
def timed(spent: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    spent[name] += time.perf_counter() - begin


def entering(model: Any, batches: list[Tensor]) -> tuple[list[Tensor], dict[str, Any]]:
    """What enters the first layer for each batch, and what layers are called with; all batches are as long."""
    seen: list[Tensor] = []
    calls: dict[str, Any] = {}

    def keep(_module: nn.Module, args: tuple[Tensor, ...], told: dict[str, Any]) -> None:
        seen.append(args[0])
        calls.update(told)
        raise Stop

    handle = model.model.layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    for rows in batches:
        with suppress(Stop):
            model(input_ids=rows, use_cache=False)
    handle.remove()
    return seen, calls


def inputs_of(layer: nn.Module, hidden: Tensor, calls: dict[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    handles = [
        layer.get_submodule(name).register_forward_pre_hook(lambda _m, args, name=name: found.update({name: args[0]}))
        for name in STAGES
    ]
    layer(hidden, **calls)
    for handle in handles:
        handle.remove()
    return found


def work(layer: nn.Module, states: list[Tensor], calls: dict[str, Any], method: str) -> None:
    """The passes: statistics up to the last distinct input, then on with the pruned layer. `balanced` gathers anew
    for each distinct input, of two models."""
    streams, stops = (2, STAGES) if method == "balanced" else (1, STAGES[-1:])
    for _ in range(streams):
        for stop in stops:
            for hidden in states:
                up_to(layer, stop, hidden, calls)
        for hidden in states:
            layer(hidden, **calls)


def up_to(layer: nn.Module, name: str, hidden: Tensor, calls: dict[str, Any]) -> None:
    def stop(_module: nn.Module, _args: object) -> None:
        raise Stop

    handle = layer.get_submodule(name).register_forward_pre_hook(stop)
    with suppress(Stop):
        layer(hidden, **calls)
    handle.remove()


def products(inputs: list[dict[str, Tensor]], method: str) -> None:
    """Plain products; where a residual's drift is asked for, that of the two Linears that write to it."""
    if method == "wanda":
        return
    for found in inputs:
        for name, x in found.items():
            rows = x.flatten(0, -2)
            rows.T @ rows
            if method == "balanced":
                rows.T @ rows  # with the dense model's inputs
                if name in ("self_attn.o_proj", "mlp.down_proj"):
                    found[STAGES[0]].flatten(0, -2).T @ rows


def solve(layer: nn.Module, inputs: list[dict[str, Tensor]], method: str, spent: dict[str, float]) -> None:
    """The method's own solves. `balanced` also solves for its target."""
    from secateur.methods import METHODS as KNOWN
    from secateur.methods import prune_weight
    from secateur.numerics.moments import Moments
    from secateur.numerics.patterns import Pattern
    from secateur.numerics.targets import retarget

    known = KNOWN["alps" if method == "balanced" else method]
    needs = known.statistics | (frozenset({"gram", "mean", "cross"}) if method == "balanced" else frozenset())
    for group in GROUPS:
        moments = Moments(layer.get_submodule(group[0]).in_features, needs)
        for found in inputs:
            moments.update(found[group[0]], found[group[0]])
        for name in group:
            W = layer.get_submodule(name).weight
            with timed(spent, "solves"):
                if method == "balanced":
                    W, _ = retarget(W, moments, "dense", W, False)
                prune_weight(known, W, moments, Pattern(), 0.5)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="smollm2-135m")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bare", nargs=3, metavar=("MODEL", "TOKENS", "METHOD"), help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(told: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model, tokens = Path(folder) / "model", Path(folder) / "tokens.jsonl"
        make(model, context=told.length, **SHAPES[told.shape])
        make_tokens(tokens, told.samples, told.length)
        for method in told.methods:
            runs = []
            for _ in range(told.runs):
                load = os.getloadavg()[0]
                stage = pruned(model, tokens, told.samples, told.length, method, told.threads)
                command = [sys.executable, __file__, "--threads", str(told.threads)]
                command += ["--bare", str(model), str(tokens), method]
                parts = json.loads(watch(command, told.threads, HERE.parent / "src").stdout.splitlines()[-1])
                runs.append({"prune": stage, **parts, "share": stage / sum(parts.values()), "load": load})
            rows.append({"shape": told.shape, "method": method, "tokens": told.samples * told.length,
                         "threads": told.threads, "runs": runs})  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| shape | method | prune stage, s | passes, s | products, s | solves, s | share | range | load |",
             "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |"]  # fmt: skip
    for row in rows:
        runs = row["runs"]
        middle = [
            f"{statistics.median(run[key] for run in runs):.1f}" for key in ("prune", "passes", "products", "solves")
        ]
        shares, loads = sorted(run["share"] for run in runs), sorted(run["load"] for run in runs)
        shown = [row["shape"], row["method"], *middle, f"{statistics.median(shares):.2f}"]
        shown += [f"{shares[0]:.2f} to {shares[-1]:.2f}", f"{loads[0]:.1f} to {loads[-1]:.1f}"]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    told = arguments()
    torch.set_num_threads(told.threads)
    if told.bare:
        model, tokens, method = told.bare
        print(json.dumps(bare(Path(model), Path(tokens), method)))
        return
    file = RESULTS / "speed.json"
    fresh = measure(told)
    measured = {(row["shape"], row["method"]) for row in fresh}
    kept = [row for row in (json.loads(file.read_text()) if file.is_file() else [])
            if (row["shape"], row["method"]) not in measured]  # fmt: skip
    rows = sorted([*kept, *fresh], key=lambda row: (row["shape"], list(METHODS).index(row["method"])))
    file.write_text(json.dumps(rows, indent=1) + "\n")
    page = f"# What a prune stage costs over its own bare work\n\n`python benchmarks/speed.py`\n\n{table(rows)}\n"
    (RESULTS / "speed.md").write_text(page)
    print(table(rows))


if __name__ == "__main__":
    main()
