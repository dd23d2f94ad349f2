"""Wanda and SparseGPT on a Llama-2-7B-shaped random model, 128 x 2048 tokens, bf16, on one CUDA device.

    python benchmarks/gpu.py

Prints seconds of each stage and its share of the device's matrix throughput (measured here with one large bf16
product), beside an eager column-by-column loop of SparseGPT's update on one matrix of the model. Needs a CUDA
device and about 30 GB of disk. NOT RUN YET: no such device was at hand when it was written.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _checkpoints import make, make_tokens

LAYERS, HIDDEN, FFN, HEADS, VOCABULARY = 32, 4096, 11008, 32, 32000
SAMPLES, LENGTH = 128, 2048


def seconds(work: Callable[[], object], runs: int = 5) -> float:
    """Median time of a piece of GPU work, warmed up."""
    times = []
    for _ in range(runs + 2):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return sorted(times[2:])[runs // 2]


def throughput() -> float:
    """FLOP/s of a large bf16 product: the ceiling that stages are held against."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / seconds(lambda: a @ a)


def column_loop(weight: torch.Tensor, factor: torch.Tensor) -> None:
    """SparseGPT's update as most scripts write it: one column after the other, errors passed on at once."""
    W = weight.clone()
    for i in range(W.shape[1]):
        column = W[:, i]
        keep = (column / factor[i, i]).abs() > 0.5
        error = (column - column * keep) / factor[i, i]
        W[:, i:] -= error[:, None] * factor[i, i:]


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a CUDA device, and this machine or this build of torch has none")
    ceiling = throughput()
    print(f"{torch.cuda.get_device_name()}: {ceiling / 1e12:.0f} TFLOP/s in bf16")
    per_token = 2 * LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * FFN)
    forward = per_token * SAMPLES * LENGTH
    with tempfile.TemporaryDirectory(prefix="secateur-gpu-") as folder:
        work = Path(folder)
        make(work / "model", LAYERS, HIDDEN, FFN, HEADS, HEADS, VOCABULARY, LENGTH)
        make_tokens(work / "tokens.jsonl", SAMPLES, LENGTH, VOCABULARY)
        for method in ("wanda", "sparsegpt"):
            out = work / method
            command = ["prune", str(work / "model"), "--method", method, "--sparsity", "0.5", "--evaluate", "none"]
            command += ["--calibrate", str(work / "tokens.jsonl"), "--length", str(LENGTH), "--dtype", "bfloat16"]
            subprocess.run(
                [sys.executable, "-m", "secateur", *command, "--device", "cuda", "--out", str(out), "--quiet"],
                check=True,
            )
            stages = {s["name"]: s["seconds"] for s in json.loads((out / "report.json").read_text())["stages"]}
            share = 2 * forward / ceiling / stages["prune"]
            print(f"{method}: prune {stages['prune']:.1f} s, two forward passes at the ceiling are {share:.0%} of it")
            print(stages)
    weight = torch.randn(FFN, HIDDEN, device="cuda")
    factor = torch.linalg.cholesky(torch.eye(HIDDEN, device="cuda") * 2, upper=True)
    loop = seconds(lambda: column_loop(weight, factor), runs=1)
    print(
        f"eager column loop, one {FFN} x {HIDDEN} matrix: {loop:.2f} s; 7 such a layer make {7 * LAYERS * loop:.0f} s"
    )


if __name__ == "__main__":
    main()
