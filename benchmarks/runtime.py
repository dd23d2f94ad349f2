"""What zeros and narrower layers buy on this machine, in one run: 12 layers of Llama 3 8B, 2.7 B random parameters.

    python benchmarks/runtime.py            all of it: 30 minutes on two cores, 25 GB of disk, 12 GB of memory
    python benchmarks/runtime.py --quick    a small model, to try it out; nothing is written to results/

Weights are random and pruned by magnitude, matrix by matrix: speed doesn't depend on what they say. Measures, in
bf16, at batch 1, with as many threads as cores (or --threads), by `secateur.bench`:

- decoding at 50 % and 70 % sparsity from compressed weights against dense ones: eager, torch.compile, and compiled
  with frozen weights and autotuned kernels (the fastest of the three is the fastest dense setting)
- the time to the first token, and at 50 % decoding of 4 and 16 sequences, eager
- bytes of the weights in memory
- FFN channels cut by 25 % and 50 %: the dense shapes that such a cut leaves, against what the bytes promise

The machine should do nothing else meanwhile. Writes results/runtime.json and results/runtime.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from _checkpoints import make
from safetensors.torch import load_file, save_file

import secateur

RESULTS = Path(__file__).parent / "results"
SHAPE = {"layers": 12, "hidden": 4096, "ffn": 14336, "heads": 32, "kv_heads": 8, "vocabulary": 32000}
QUICK = {"layers": 2, "hidden": 256, "ffn": 704, "heads": 4, "kv_heads": 2, "vocabulary": 4096}
CONTEXT, BATCHES, TOKENS, FEW_TOKENS = 32, (4, 16), 16, 4
GOALS = {("50%", "eager"): 1.7, ("70%", "eager"): 2.0, ("50%", "fastest"): 1.2, ("70%", "fastest"): 1.5}
RESIDENT_GOAL, DISK_GOAL, CUT_GOAL, PREFILL_GOAL = 0.60, 0.57, 0.10, 1.05


def checkpoint(folder: Path, shape: dict[str, int], ffn: int | None = None) -> Path:
    make(folder, **(shape | {"ffn": ffn or shape["ffn"]}), context=1024)
    return folder


def pruned(dense: Path, folder: Path, sparsity: float) -> Path:
    """A copy with the smallest entries of every decoder matrix at zero, shard by shard."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors.index.json"):
        (folder / name).write_bytes((dense / name).read_bytes())
    for file in sorted(dense.glob("*.safetensors")):
        tensors = load_file(file)
        for name, W in tensors.items():
            if name.endswith("proj.weight"):
                sample = W.flatten()[:: max(1, W.numel() // 1_000_000)].abs().float()
                border = sample.kthvalue(max(1, round(sparsity * sample.numel()))).values
                tensors[name] = W.masked_fill(W.abs() <= border, 0)
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
    return folder


def decode(form: dict[str, Any], batch: int = 1) -> float:
    """Tokens a second."""
    if "error" in form:
        sys.exit(f"{form['name']}: {form['error']}")
    return next(row["decode_tokens_per_s"] for row in form["rows"] if row["batch"] == batch)


def first_token(form: dict[str, Any]) -> float:
    """Seconds, one sequence."""
    return next(row["first_token_seconds"] for row in form["rows"])


def measure(work: Path, shape: dict[str, int], threads: int, fast: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {"contexts": (CONTEXT,), "threads": threads, "limit": 300.0, "quiet": True}
    dense = checkpoint(work / "dense", shape)
    found: dict[str, Any] = {"shape": shape, "parameters": secateur.Checkpoint.open(dense).parameters}
    for name, sparsity in (("50%", 0.5), ("70%", 0.7)):
        say(f"{name} sparse")
        zeros = pruned(dense, work / f"zeros-{name}", sparsity)
        sizes = secateur.compress(zeros, work / f"small-{name}", quiet=True)
        # The dense forms are measured beside each: what the machine does meanwhile may change.
        small = work / f"small-{name}"
        report = secateur.bench(small, dense, batches=(1,), tokens=TOKENS, compile=not fast, **settings)
        found[name] = {"sizes": sizes, "bench": report}
        if name == "50%":
            report = secateur.bench(small, batches=BATCHES, tokens=FEW_TOKENS, compile=False, **settings)
            found["batches 50%"] = {"bench": report}
        for folder in (zeros, small):
            delete(folder)
    for name, share in (("25%", 0.25), ("50%", 0.5)):
        say(f"{name} of the channels")
        cut = checkpoint(work / f"cut-{name}", shape, round(shape["ffn"] * (1 - share)))
        report = secateur.bench(cut, dense, batches=(1,), tokens=TOKENS, compile=False, **settings)
        found[f"channels {name}"] = {"bench": report}
        delete(cut)
    return found


def delete(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text} ...", file=sys.stderr, flush=True)


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was to be reached, and what was."""
    table = []
    for name in ("50%", "70%"):
        forms = {form["name"]: form for form in found[name]["bench"]["forms"]}
        dense = {key: decode(form) for key, form in forms.items() if key.startswith("dense")}
        small = {key: decode(form) for key, form in forms.items() if key.startswith("compressed")}
        best = max(small, key=lambda key: small[key])
        fastest = max(dense, key=lambda key: dense[key])
        eager = small["compressed, eager"]
        pairs = [("eager", "compressed, eager", eager, "dense, eager"), ("fastest", best, small[best], fastest)]
        for against, what, speed, other in pairs:
            ratio, goal = speed / dense[other], GOALS[name, against]
            table.append(row(f"decode at {name}: {what} / {other}", ratio, f">= {goal}", ratio >= goal))
        first = first_token(forms["compressed, eager"]) / first_token(forms["dense, eager"])
        goal = f"<= {PREFILL_GOAL}"
        table.append(row(f"first token at {name}, eager: compressed / dense", first, goal, first <= PREFILL_GOAL))
        resident = (
            forms["compressed, eager"]["resident_weight_bytes"] / forms["dense, eager"]["resident_weight_bytes"]
        )
        goal = f"<= {RESIDENT_GOAL}" if name == "50%" else "-"
        table.append(
            row(f"weights in memory at {name} / dense", resident, goal, name != "50%" or resident <= RESIDENT_GOAL)
        )
        disk = found[name]["sizes"]["matrix_bytes_after"] / found[name]["sizes"]["matrix_bytes_before"]
        table.append(row(f"sparse matrices on disk at {name} / dense", disk, f"<= {DISK_GOAL}", disk <= DISK_GOAL))
    plain, packed = found["batches 50%"]["bench"]["forms"]
    for batch in BATCHES:
        gain = decode(packed, batch) / decode(plain, batch)
        table.append(row(f"decode at 50%, batch {batch}, eager: compressed / dense", gain, "-", True))
    for name in ("channels 25%", "channels 50%"):
        dense_form, cut = found[name]["bench"]["forms"][:2]
        gain = decode(cut) / decode(dense_form)
        ideal = dense_form["resident_weight_bytes"] / cut["resident_weight_bytes"]
        near = gain >= (1 - CUT_GOAL) * ideal
        table.append(row(f"decode with {name} cut / dense", gain, f">= {1 - CUT_GOAL:.2f} x {ideal:.3f}", near))
    return table


def row(what: str, value: float, goal: str, reached: bool) -> dict[str, Any]:
    return {"what": what, "measured": round(value, 3), "goal": goal, "reached": "yes" if reached else "NO"}


def page(found: dict[str, Any], table: list[dict[str, Any]]) -> str:
    facts = found["50%"]["bench"]["machine"]
    lines = [
        "# What zeros buy",
        f"`python benchmarks/runtime.py`: {found['parameters'] / 1e9:.2f} B parameters, bf16, context {CONTEXT}, "
        f"{facts['processor']} ({', '.join(facts['features'])}), {facts['threads']} threads, kernels "
        f"`{facts['kernels'][0] if facts['kernels'] else 'none'}`, torch {facts['packages']['torch']}, load average "
        f"before {facts['load_before'][0]}.",
        markdown(table),
        "## All figures",
    ]
    for name in ("50%", "batches 50%", "70%", "channels 25%", "channels 50%"):
        report = found[name]["bench"]
        figures = [
            {
                "form": form["name"],
                "batch": measured["batch"],
                "first token s": round(measured["first_token_seconds"], 3),
                "decode tokens/s": round(measured["decode_tokens_per_s"], 3),
                "slowest, fastest step ms": f"{1e3 * measured['slowest_segment']:.1f}, "
                f"{1e3 * measured['fastest_segment']:.1f}",
                "weights in memory GB": round(form["resident_weight_bytes"] / 1e9, 3),
                "peak GB": round(form["peak_memory_bytes"] / 1e9, 2),
                "loads in s": round(form["load_seconds"], 1),
            }
            for form in report["forms"]
            for measured in form["rows"]
            if "skipped" not in measured
        ]
        lines += [f"### {name}", markdown(figures), "\n".join(f"- {text}" for text in report["verdicts"])]
    return "\n\n".join(lines) + "\n"


def markdown(table: list[dict[str, Any]]) -> str:
    head = list(table[0])
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    return "\n".join(f"| {line} |" for line in [*lines, *(" | ".join(str(r[key]) for key in head) for r in table)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model; nothing is written to results/")
    parser.add_argument("--layers", type=int, help="so many layers instead; nothing is written to results/")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--no-compile", action="store_true", help="eager forms only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = QUICK if arguments.quick else SHAPE
    shape = shape | {"layers": arguments.layers or shape["layers"]}
    with tempfile.TemporaryDirectory(prefix="secateur-runtime-") as folder:
        found = measure(Path(folder), shape, arguments.threads, arguments.no_compile)
    table = rows(found)
    text = page(found, table)
    print(text)
    if not arguments.quick and arguments.layers is None:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "runtime.json").write_text(json.dumps(found | {"table": table}, indent=1) + "\n")
        (RESULTS / "runtime.md").write_text(text)


if __name__ == "__main__":
    main()
