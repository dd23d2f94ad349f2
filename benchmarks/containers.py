"""Are quantised checkpoints read as the tools that make them read them? Each is made here by such a tool.

    python benchmarks/containers.py --model path/to/llama --work out/containers \
        --python llmcompressor=path/to/python --python bitsandbytes=path/to/python [--only TOOL:WAY ...]

Every tool runs in the environment that is named for it, on a Llama (transformers on small models of other types too):
it quantises, saves, and reads its own files back as plain weights. Then Secateur reads the same files, and both are
compared in bf16, entry by entry; and a quarter of the FFN channels is pruned from the folder, with everything that
`secateur prune` checks. What is there already isn't made again. Writes results/containers.json and .md; types that
aren't asked for keep what was found of them before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from secateur.data.embedded import embedded_path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
WAYS = {
    "llmcompressor": (
        *("W8A8", "W4A16", "W4A16_ASYM", "W8A16", "W3A16", "W4A16+gptq"),
        *("FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "NVFP4", "MXFP4A16", "MXFP4", "MXFP8A16"),
    ),
    "bitsandbytes": ("int8", "nf4", "nf4-nested", "fp4", "fp4-nested"),
    "gptqmodel": (
        *("gptq-2", "gptq-3", "gptq-4", "gptq-8", "gptq-3-order", "gptq-4-order", "gptq-8-order"),
        *("gptq-4-v2", "gptq-4-v2-asym", "awq", "awq-3", "awq-8"),
    ),
    "autoawq": ("gemm",),
    "transformers": ("fp8-llama", "fp8-deepseek_v3", "fp8-ue8m0-deepseek_v3", "mxfp4-gpt_oss"),
}
TEXT = "The oath of the three brothers was kept to the end of their days, and nobody broke it. "


def made(tool: str, way: str, told: argparse.Namespace, interpreter: str) -> tuple[Path, Path, dict[str, Any]]:
    """The tool's folder, its own reading of it, and its versions."""
    folder, theirs = (told.work / f"{tool}-{way}{end}" for end in ("", ".safetensors"))
    said = told.work / f"{tool}-{way}.json"
    if not said.exists():
        script = [interpreter, str(HERE / "_container_make.py"), str(told.model), str(folder), str(theirs)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        told_how: dict[str, Any] = {"capture_output": True, "text": True, "env": environment, "check": False}
        # Tools leave their logs where they run.
        done = subprocess.run([*script, "--tool", tool, "--way", way], cwd=told.work, **told_how)
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no word"])[-1][:200])
        said.write_text(lines[-1], encoding="utf-8")
    small = tool == "transformers" and not way.endswith("-llama")
    words = embedded_path() if small else told.model
    for name in ("tokenizer.json", "tokenizer_config.json"):  # which belong beside it, and no tool has saved
        if (words / name).is_file() and not (folder / name).exists():
            shutil.copyfile(words / name, folder / name)
    return folder, theirs, json.loads(said.read_text(encoding="utf-8"))


def compared(folder: Path, theirs: Path) -> dict[str, Any]:
    """Secateur's reading beside the tool's: entries, those that differ, and by how many steps of bf16 at most."""
    import torch
    from safetensors.torch import load_file

    from secateur.model.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(folder)
    own, other = load_file(checkpoint.path / "model.safetensors"), load_file(theirs)
    if not other:
        raise ValueError("the tool's own reading has no tensors")
    entries = unequal = 0
    worst = 0.0
    for name, tensor in other.items():
        mine = own[name].float()
        if mine.shape != tensor.shape:
            raise ValueError(f"{name}: {tuple(mine.shape)} here, {tuple(tensor.shape)} there")
        off = (mine - tensor.float()).abs()
        entries += off.numel()
        unequal += int((off > 0).sum())
        step = 2.0 ** (torch.maximum(mine.abs(), tensor.float().abs()).log2().floor() - 7)
        worst = max(worst, float((off / step).nan_to_num().max()))
    return {"matrices": len(other), "entries": entries, "unequal": unequal, "steps": worst}


def pruned(folder: Path, out: Path, text: Path) -> dict[str, Any]:
    """What `secateur prune` makes of it: where the weights came from, and its own check."""
    from secateur.config.recipe import make_recipe
    from secateur.pipeline.prune import prune

    given: dict[str, Any] = {"model": str(folder), "sites": ("channel",), "sparsity": 0.25, "calibrate": str(text)}
    given |= {"samples": 8, "length": 64, "evaluate": "none", "speed": False, "explain": False, "device": "cpu"}
    report = prune(make_recipe({**given, "allow_little_text": True}), out, overwrite=True, quiet=True)
    return {"stored_as": report["model"]["stored_as"], "gate": report["gate"]["max_logit_difference"]}


def look_at(tool: str, way: str, told: argparse.Namespace, interpreter: str) -> dict[str, Any]:
    row: dict[str, Any] = {"tool": tool, "way": way}
    try:
        folder, theirs, versions = made(tool, way, told, interpreter)
    except RuntimeError as error:
        return {**row, "not_made": str(error)}
    row["versions"] = versions
    try:
        row |= compared(folder, theirs)
        row |= pruned(folder, told.work / "out", told.work / "text.txt")
    except Exception as error:  # what is wrong is what this script is for
        row["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| tool | way | entries | that differ from the tool's own | by at most | pruned from |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        head = f"| {row['tool']} {row.get('versions', {}).get(row['tool'], '')} | `{row['way']}` |"
        if "not_made" in row or "failed" in row:
            lines.append(f"{head} {row.get('failed') or 'not made here: ' + row['not_made']} | | | |")
            continue
        steps = f"{row['steps']:g} step{'s' * (row['steps'] > 1)} of bf16" if row["unequal"] else "-"
        lines.append(f"{head} {row['entries']:,} | {row['unequal']:,} | {steps} | {row['stored_as']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--python", action="append", default=[], metavar="TOOL=PATH")
    parser.add_argument("--only", nargs="*", metavar="TOOL:WAY")
    told = parser.parse_args()
    told.work, told.model = told.work.resolve(), told.model.resolve()
    told.work.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(told.work / "cache")
    (told.work / "text.txt").write_text(TEXT * 200, encoding="utf-8")
    given = (pair.split("=", 1) for pair in told.python)
    interpreters = {"transformers": sys.executable, **{tool: os.path.abspath(path) for tool, path in given}}
    file = RESULTS / "containers.json"
    before = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    known = {(row["tool"], row["way"]): row for row in before}
    for tool, ways in WAYS.items():
        for way in ways:
            if tool in interpreters and (not told.only or f"{tool}:{way}" in told.only):
                known[tool, way] = look_at(tool, way, told, interpreters[tool])
                print(json.dumps(known[tool, way]), flush=True)
    rows = [known[tool, way] for tool, ways in WAYS.items() for way in ways if (tool, way) in known]
    file.write_text(json.dumps({"model": told.model.name, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "containers.md").write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
