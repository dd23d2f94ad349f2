"""Whether `secateur inspect --forecast` is right: runs what can be run here, and puts both figures side by side.

python benchmarks/forecast.py                      the embedded model, and a Llama of random weights
python benchmarks/forecast.py path/to/model ...    these too

Writes benchmarks/results/forecast.json; scripts/expect_tables.py brings it into docs/expect.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch

import secateur
from secateur.analysis import forecast
from secateur.data.embedded import embedded_path
from secateur.model.checkpoint import Checkpoint

RESULT = Path(__file__).parent / "results" / "forecast.json"
SIZES = {"random Llama, 4 x 13 M": (4, 1024)}  # layers, hidden
QUALITIES = {"weight": ("fast", "balanced"), "channel": ("balanced",)}
SAMPLES, LENGTH = 32, 256


def main(paths: list[str]) -> None:
    about = {"processor": forecast.this_machine().name, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    found = {**about, "load": 0.0, "samples": SAMPLES, "length": LENGTH, "rows": []}
    if RESULT.is_file():
        found = json.loads(RESULT.read_text(encoding="utf-8"))
    done = {(row["model"], row["cut"], row["quality"]) for row in found["rows"]}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        models = {"embedded": embedded_path(), **{Path(path).name: Path(path) for path in paths}}
        for name, (layers, hidden) in SIZES.items():
            models[name] = random_llama(work / name.replace(" ", ""), layers, hidden)
        text = work / "ids.jsonl"
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, 250, (4 * SAMPLES, LENGTH), generator=generator).tolist()
        text.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ids), encoding="utf-8")
        for name, path in models.items():
            for cut, qualities in QUALITIES.items():
                for quality in qualities:
                    if (name, cut, quality) not in done:
                        found["rows"].append(compared(name, path, cut, quality, text, work))
                        found["load"] = max(found["load"], round(psutil.getloadavg()[0], 1))
                        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def random_llama(folder: Path, layers: int, hidden: int) -> Path:
    """A Llama of random weights whose layers have the proportions of a real one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def compared(name: str, path: Path, cut: str, quality: str, text: Path, work: Path) -> dict[str, Any]:
    """One run in a process of its own, beside its forecast."""
    machine = forecast.this_machine()
    shape = forecast.shape_of(Checkpoint.open(path), SAMPLES, LENGTH)
    said = forecast.row(shape, machine, forecast.Way(cut, quality))
    out = work / f"{name}-{cut}-{quality}".replace(" ", "")
    words = ["prune", str(path), "--sites", cut, "--sparsity", "0.5", "--quality", quality, "--calibrate", str(text)]
    words += ["--samples", str(SAMPLES), "--length", str(LENGTH), "--evaluate", "none", "--no-explain", "--quiet"]
    words += ["--threads", str(torch.get_num_threads()), "--out", str(out)]
    subprocess.run([sys.executable, "-m", "secateur", *words], check=True, capture_output=True)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    stage = next(stage for stage in report["stages"] if stage["name"] == "prune")
    found = {
        "model": name,
        "parameters": shape.parameters,
        "cut": cut,
        "quality": quality,
        "forecast_seconds": round(said["seconds"], 2),
        "seconds": stage["seconds"],
        "cpu_seconds": stage["cpu_seconds"],
        "forecast_memory_bytes": said["memory_bytes"],
        "peak_memory_bytes": stage["peak_memory_bytes"],
    }
    print(found, flush=True)
    return found


if __name__ == "__main__":
    print(secateur.__version__)
    main(sys.argv[1:])
