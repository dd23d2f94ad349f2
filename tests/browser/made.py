"""The pages that are opened in a browser: one small real run, and records as other runs would leave them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import secateur
from secateur.analysis.compare import compare
from secateur.report.compare import render
from secateur.report.html import page
from secateur.report.html.bench import bench_page
from secateur.report.html.search import search_page
from secateur.report.html.sensitivity import write_page
from tests.report import fixtures

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("report", "report-32", "bench", "sensitivity", "compare", "search")


def pages(folder: Path) -> dict[str, Path]:
    """Writes every page into `folder`: name -> file."""
    found = {name: folder / f"{name}.html" for name in NAMES}
    found["report"] = pruned(folder)
    found["report-32"].write_text(page.render(fixtures.unstructured()), encoding="utf-8")
    found["bench"].write_text(bench_page(bench()), encoding="utf-8")
    write_page(sensitivity(layers=32), found["sensitivity"])
    found["search"].write_text(search_page(searched(layers=24)), encoding="utf-8")
    outs = []
    for name, perplexity in (("small", 8.893), ("half", 6.1)):
        report = fixtures.structured() | {"recipe": {"seed": int(perplexity), "method": "obs"}}
        report["evaluation"]["after"]["sets"] = {"stories": {"perplexity": perplexity, "data_sha256": "ab"}}
        (folder / name).mkdir()
        (folder / name / "report.json").write_text(json.dumps(report), encoding="utf-8")
        outs.append(folder / name)
    found["compare"].write_text(render(compare(outs)), encoding="utf-8")
    return found


def pruned(folder: Path) -> Path:
    """The report of a real run on the embedded model, with its evidence and samples."""
    parts = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").glob("*.md"))[:4]]
    for name, part in (("calibrate", parts[0] + parts[1]), ("judge", parts[2][:8000])):
        (folder / f"{name}.txt").write_text(part, encoding="utf-8")
    recipe = {
        "model": "embedded",
        "sites": ("channel", "query_head"),
        "sparsity": {"channel": 0.125, "query_head": 0.5},
        "calibrate": str(folder / "calibrate.txt"),
        "evaluate": str(folder / "judge.txt"),
        "samples": 8,
        "length": 128,
        "speed": False,
    }
    secateur.prune(secateur.make_recipe(recipe), folder / "pruned", quiet=True)
    return folder / "pruned" / "report.html"


def sensitivity(layers: int) -> dict[str, Any]:
    """As `secateur sensitivity --json` prints it; from harmless to ruinous."""
    sites = [
        {
            "site": f"layers.{layer}.{kind}",
            "kind": kind,
            "layer": layer,
            "level": level,
            "kl": 10 ** (3 * level - 3 + 1.2 * math.cos(layer / 4 + len(kind))),
        }
        for kind in ("channel", "query_head")
        for level in (0.25, 0.5, 0.75)
        for layer in range(layers)
    ]
    about = {"model": "path/to/model", "calibration": "stdlib", "data_sha256": "ab" * 32, "tokens": 8192}
    return {**about, "methods": {"channel": "obs", "query_head": "obs"}, "sites": sites}


def searched(layers: int) -> Any:
    """As search.json has it: forty candidates of which one was chosen, and timed twice."""
    candidates: list[dict[str, Any]] = []
    for n in range(40):
        share, harm = 0.5 + n / 100, 1.2 * math.exp(-n / 9) * (1 + 0.3 * math.sin(5 * n))
        pieces = [(f"layers.{layer}.channel", 0.125 * (1 + (layer + n) % 6)) for layer in range(0, layers, 1 + n % 3)]
        pieces += [("layers.7.layer", 1.0)] if n % 4 == 0 else [("layers.3.kv_group", 0.5), ("layers.9.ffn", 1.0)]
        takes = {"params": 1.3e8 * share, "latency": 0.05 * (share + 0.02 * math.sin(n)), "prefill": 0.9 * share}
        told = {"pieces": pieces, "predicted": harm * (1 + 0.2 * math.cos(n)), "measured": harm, "takes": takes}
        candidates.append({**told, "chosen": n == 20, "front": n % 3 == 0, "plan": "plan.json" if n == 20 else None})
    seconds = {"whole": 0.05, "predicted": 0.035, "measured": 0.0352}
    timed = {key: {"latency": value, "prefill": 18 * value} for key, value in seconds.items()}
    piece = {"site": "layers.0.channel", "layer": 0, "kind": "channel", "share": 0.25, "kl": 0.0123, "measured": True}
    kinds = ("kv_group", "channel", "ffn", "layer")
    return {
        "secateur": "0.1.0",
        "model": "path/to/model",
        "calibration": {"source": "stdlib"},
        "tokens": 4096,
        "layers": layers,
        "whole": {"params": 1.3e8, "latency": 0.05, "prefill": 0.9},
        "wishes": [
            {"wish": "latency=0.7x", "about": "latency", "limit": 0.035, "whole": 0.05, "got": 0.0352, "held": True},
            {
                "wish": "perplexity<=1.1x",
                "about": "perplexity",
                "limit": 20.0,
                "whole": 18.2,
                "got": 21.3,
                "held": False,
            },
        ],
        "pieces": [{**piece, "kind": kind, "saves": {"params": 123456.0}} for kind in kinds],
        "candidates": candidates,
        "hidden": [
            {"kept": 504, "units": 576, "kl": 0.05, "best": 0.11, "chosen": False},
            {"kept": 432, "units": 576, "kl": 0.4, "best": None, "chosen": False},
        ],
        "formats": [
            {"type": "q8_0", "bytes": 1.45e8, "kl": 0.0002, "best": 0.31, "perplexity": None, "chosen": False},
            {"type": "q4_0", "bytes": 7.6e7, "kl": 0.04, "best": 0.057, "perplexity": 21.3, "chosen": True},
        ],
        "finalists": [
            {"pieces": [("layers.0.channel", 0.5)], "kl": 0.02, "perplexity": 21.3, "chosen": True},
            {"pieces": [("layers.7.layer", 1.0)], "kl": 0.11, "perplexity": 24.9, "chosen": False},
        ],
        "timed": [{"pieces": [], **timed}, {"pieces": [], **timed}],
        "rank_correlation": 0.934,
        "limited_by": "perplexity<=1.1x: not held",
        "perplexity": {"before": 18.2, "after": 21.3},
        "machine": {"device": "cpu", "threads": 2},
    }


def bench() -> dict[str, Any]:
    """As `secateur bench --json` prints it: three forms, one row left out."""
    forms: list[dict[str, Any]] = []
    for name, speed in (("dense, eager", 212.0), ("pruned, eager", 214.0), ("compressed, eager", 371.5)):
        rows: list[dict[str, Any]] = [
            {
                "batch": batch,
                "context": 128,
                "first_token_seconds": 0.031 * batch,
                "prefill_tokens_per_s": 4100.0,
                "decode_tokens_per_s": speed * batch**0.7,
                "decode_range": [0.94 * speed * batch**0.7, 1.03 * speed * batch**0.7],
                "against_first": speed / 212,
                "against_first_range": [speed / 212 * 0.95, speed / 212 * 1.05],
                "verdict": "faster" if speed > 300 else "no difference measured",
                "joules_per_token": None,
            }
            for batch in (1, 8)
        ]
        rows.append({"batch": 1, "context": 9999, "skipped": "9999 + 16 tokens are more than the context of 512"})
        sizes = {"bytes_on_disk": 5_700_000, "resident_weight_bytes": 11_300_000, "peak_memory_bytes": 410_000_000}
        forms.append({"name": name, "rows": rows, "load_seconds": 0.4, **sizes})
    machine = {
        "processor": "AMD EPYC 7B13",
        "cores": 2,
        "logical_cores": 2,
        "threads": 2,
        "memory_bytes": 24 * 10**9,
        "load_before": [0.1, 0.2, 0.2],
        "features": ["avx2", "fma", "f16c"],
        "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
        "kernels": ["avx2"],
    }
    return {
        "secateur": "0.1.0",
        "model": "out/sparse",
        "against": "path/to/model",
        "settings": {"threads": 2, "dtype": "float32", "batches": (1, 8), "contexts": (128, 9999), "tokens": 64},
        "machine": machine,
        "notes": ["Energy can't be read on this machine."],
        "forms": forms,
        "headline": "The compressed model decodes 1.75× as fast as the dense one at batch 1",
        "verdicts": ["At batch 1 compressed is fastest.", "Zeros in a dense file make no difference."],
    }
