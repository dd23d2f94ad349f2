"""How fast an accelerator prunes a Llama-2-7B-shaped random model, 128 x 2048 tokens in bf16, and runs what is left.

    python benchmarks/gpu.py                      the first CUDA device; --device takes what secateur takes
    python benchmarks/gpu.py --tiny --device cpu  a model of a few thousand weights, to try it out

In one process, under nine minutes: what no longer fits in them is left out, and named. Seconds of Wanda, SparseGPT
and balanced, of best on two layers, and of SparseGPT as a plain loop; prefill and decoding of the dense shape and of
shapes with half and 30 % of the channels; its Linears with 50 and 70 % zeros and 2:4, in the forms that win, as CUDA
graphs. Times stand beside what the device's own products and copies need at least. Needs 30 GB of disk. Adds a row a
measurement to results/gpu.json and .md, but not with --tiny.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _checkpoints import make, make_tokens
from _gpu_zeros import zeros
from transformers import LlamaConfig, LlamaForCausalLM

import secateur
from secateur.config.recipe import make_recipe
from secateur.evaluation.speed import Trial
from secateur.methods import sparsegpt
from secateur.numerics.linalg import inverse_upper
from secateur.numerics.moments import Moments
from secateur.numerics.patterns import Pattern
from secateur.system import accelerator
from secateur.system.device import device_name, resolve_device

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A model, the text that goes through it, and the side of the products that tell the ceiling."""

    layers: int = 32
    hidden: int = 4096
    ffn: int = 11008
    heads: int = 32
    vocabulary: int = 32000
    samples: int = 128
    length: int = 2048
    side: int = 8192
    reconstruct: int = 360

    @property
    def block(self) -> int:
        """Weights of a layer."""
        return 4 * self.hidden**2 + 3 * self.hidden * self.ffn


TINY = Shape(2, 32, 64, 4, 64, 4, 16, 64, 4)


@dataclass(frozen=True)
class Ceiling:
    """FLOP and bytes a second that the device reaches with one large product and one large copy."""

    flops: float
    bytes: float


def seconds(work: Callable[[], object], device: torch.device, runs: int = 5) -> float:
    """Median time of a piece of work, warmed up."""
    times = []
    for _ in range(runs + 1):
        accelerator.synchronize(device)
        begun = time.perf_counter()
        work()
        accelerator.synchronize(device)
        times.append(time.perf_counter() - begun)
    return sorted(times[1:])[runs // 2]


def ceiling_of(device: torch.device, shape: Shape) -> Ceiling:
    a = torch.ones(shape.side, shape.side, device=device, dtype=torch.bfloat16)
    b = torch.empty_like(a)
    copy = 2 * a.nbytes / seconds(lambda: b.copy_(a), device)
    return Ceiling(2 * shape.side**3 / seconds(lambda: a @ a, device), copy)


def prune(folder: Path, shape: Shape, device: str, layers: int, **asked: Any) -> float:
    """Seconds of the walk over the model; nothing is saved."""
    model, tokens = folder / f"model-{layers}", folder / "tokens.jsonl"
    if not model.exists():
        make(
            model,
            layers,
            shape.hidden,
            shape.ffn,
            shape.heads,
            shape.heads,
            shape.vocabulary,
            shape.length,
            same=True,
        )
    if not tokens.exists():
        make_tokens(tokens, shape.samples, shape.length, shape.vocabulary)
    values = {"model": model, "calibrate": tokens, "samples": shape.samples, "length": shape.length, "sparsity": 0.5}
    values |= {"evaluate": "none", "speed": False, "device": device, "dtype": "bfloat16", "general_text": 0, **asked}
    out = folder / f"out-{len(list(folder.iterdir()))}"
    report = secateur.prune(make_recipe(values), out, quiet=True, dry_run=True)
    return next(stage["seconds"] for stage in report["stages"] if stage["name"] == "prune")


def pruned(name: str, shape: Shape, ceiling: Ceiling, taken: float, layers: int) -> Row:
    """Beside the two forward passes that any method needs: one to look, one to hand on."""
    least = 2 * 2 * layers * shape.block * shape.samples * shape.length / ceiling.flops
    return {"what": name, "seconds": round(taken, 3), "least": round(least, 3), "share": round(least / taken, 3)}


def column_loop(weight: torch.Tensor, factor: torch.Tensor) -> None:
    """SparseGPT's update as most scripts write it: one column after the other, errors passed on at once."""
    W = weight.clone()
    for i in range(W.shape[1]):
        column = W[:, i].clone()
        scores = (column / factor[i, i]).square()
        keep = scores > scores.median()
        error = (column - column * keep) / factor[i, i]
        W[:, i:] -= error[:, None] * factor[i, i:]


def solves(shape: Shape, ceiling: Ceiling, device: torch.device) -> list[Row]:
    """One gate projection by our SparseGPT, factor included, and by a plain loop with a factor that is there."""
    weight = torch.randn(shape.ffn, shape.hidden, device=device)
    moments = Moments(shape.hidden, frozenset({"gram"}), device)
    for _ in range(4):
        moments.update(torch.randn(shape.hidden, shape.hidden, device=device))
    factor, _ = inverse_upper(moments.gram)
    least = 2 * shape.ffn * shape.hidden**2 / 2 / ceiling.flops

    def own() -> None:
        moments._memo.clear()
        sparsegpt.solve(weight, moments, Pattern.parse("free"), 0.5)

    rows = []
    for name, work in (("SparseGPT, one matrix", own), ("the same, plain loop", lambda: column_loop(weight, factor))):
        taken = seconds(work, device, runs=1)
        rows.append(
            {"what": name, "seconds": round(taken, 4), "least": round(least, 4), "share": round(least / taken, 4)}
        )
    return rows


def speeds(shape: Shape, ceiling: Ceiling, device: torch.device, kept: float) -> list[Row]:
    """Prefill and decoding at batch 1 of the shape with a share of its channels; decoding reads every weight."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=max(1, round(shape.ffn * kept)),
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.length,
    )
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    trial = Trial(model)
    found = trial.speed([trial.run() for _ in range(3)])
    weights = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    times = {
        "prefill": (1 / found.prefill_tokens_per_s, 2 * weights / ceiling.flops),
        "decode": (1 / found.decode_tokens_per_s, 2 * weights / ceiling.bytes),
    }
    return [
        {
            "what": f"{name} a token, {kept:.0%} of the channels",
            "seconds": round(taken, 7),
            "least": round(least, 7),
            "share": round(least / taken, 3),
        }
        for name, (taken, least) in times.items()
    ]


def measure(shape: Shape, device: str, minutes: float, folder: Path) -> tuple[list[Row], Ceiling]:
    """Every part for which there is time."""
    begun, where, rows = time.monotonic(), resolve_device(device), []
    ceiling = ceiling_of(where, shape)

    def run(name: str, quality: str, method: str | None, layers: int) -> list[Row]:
        asked = {"quality": quality} | ({} if method is None else {"method": method})
        if quality == "best":
            asked["reconstruct"] = shape.reconstruct
        return [pruned(name, shape, ceiling, prune(folder, shape, device, layers, **asked), layers)]

    parts: dict[str, Callable[[], list[Row]]] = {
        "SparseGPT beside a plain loop": lambda: solves(shape, ceiling, where),
        "wanda": lambda: run("wanda", "fast", "wanda", shape.layers),
        "sparsegpt": lambda: run("sparsegpt", "fast", None, shape.layers),
        **{f"speed at {kept:.0%}": lambda kept=kept: speeds(shape, ceiling, where, kept) for kept in (1.0, 0.5, 0.3)},
        "zeros": lambda: zeros(shape, ceiling, where, seconds),
        "balanced": lambda: run("balanced", "balanced", None, shape.layers),
        "best, two layers": lambda: run("best, two layers", "best", None, 2),
    }
    for name, part in parts.items():
        if time.monotonic() - begun > 60 * minutes:
            rows.append(
                {"what": f"{name}: left out, {minutes:g} minutes were over", **dict.fromkeys(COLUMNS[1:], "")}
            )
            continue
        rows += part()
        accelerator.empty_cache(where)
        print(f"{name}: done after {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return rows, ceiling


COLUMNS = ("what", "seconds", "least", "share")


def table(rows: list[Row]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([str(row[key]) for key in COLUMNS] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0, help="no part begins after that")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape; nothing is written to results/")
    told = parser.parse_args(words)
    shape = TINY if told.tiny else Shape()
    try:
        with tempfile.TemporaryDirectory(prefix="secateur-gpu-") as folder:
            rows, ceiling = measure(shape, told.device, told.minutes, Path(folder))
    except secateur.SecateurError as error:
        sys.exit(str(error))
    name = device_name(resolve_device(told.device))
    rates = f"{ceiling.flops / 1e12:.3g} TFLOP/s in bf16, {ceiling.bytes / 1e9:.3g} GB/s"
    title = f"{name}: {rates}; torch {torch.__version__}"
    print(f"{title}\n\n{table(rows)}")
    if told.tiny:
        return
    file = RESULTS / "gpu.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    known[name] = {"title": title, "shape": vars(shape), "rows": rows}
    file.write_text(json.dumps(known, indent=1) + "\n")
    page = "\n\n".join(f"## {one['title']}\n\n{table(one['rows'])}" for one in known.values())
    (RESULTS / "gpu.md").write_text(f"# One accelerator\n\n`python benchmarks/gpu.py`\n\n{page}\n")


if __name__ == "__main__":
    main()
