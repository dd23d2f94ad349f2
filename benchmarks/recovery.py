"""What a short training wins back, and what our trainer costs over a bare loop.

    python benchmarks/recovery.py                    all parts; an hour on two cores
    python benchmarks/recovery.py --part channels260 one or more of the names below
    python benchmarks/recovery.py --part overhead

Each of the first parts prunes a model, recovers it by the command line and lets the independent judge of `_protocol`
measure all three models: perplexity of `eval.jsonl`, each story alone with BOS, fp32. Pruning and training use
`calibrate.jsonl` only. Models and text are looked for in `../shared`, or where --shared says. Results are added to
results/recovery.json and .md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from _protocol import judge, read_texts
from _recovery_table import table

RESULTS = Path(__file__).parent / "results"
STEPS, BATCH, LENGTH = 300, 8, 256


class Run(NamedTuple):
    """A pruning, a recovery, and the perplexity to reach.

    Args:
        model: folder in shared/models.
        prune, recover: flags.
        zeros: kept of each group, of how many: what the result must hold; None for smaller models.
    """

    model: str
    prune: str
    recover: str
    goal: float
    zeros: tuple[int, int] | None = None


SMALL, LARGE = "stories260K", "stories3M-fp16"
CHANNELS = "--sites channel --sparsity 0.25"
DISTILL = "--how distill --loss lm:0.3,logits:1,hidden:5"
RUNS = {
    "channels260": Run(SMALL, CHANNELS + " --quality best", DISTILL, 4.75),
    "channels260-adamw": Run(SMALL, CHANNELS + " --quality best", DISTILL + " --optimizer adamw", 4.75),
    "channels260-lora": Run(SMALL, CHANNELS + " --quality best", "--how lora --rank 8 --loss logits,hidden", 5.2),
    "layers260": Run(SMALL, "--sites layer --sparsity 0.4 --protect -1", DISTILL, 6.2),
    "layers260-any": Run(SMALL, "--sites layer --sparsity 0.4", DISTILL, 6.2),
    "layers260-adamw": Run(SMALL, "--sites layer --sparsity 0.4", DISTILL + " --optimizer adamw", 6.2),
    "channels3m": Run(LARGE, CHANNELS + " --quality best", DISTILL, 6.2),
    "layers3m": Run(LARGE, "--sites layer --sparsity 0.34 --protect -1", DISTILL, 9.5),
    "layers3m-any": Run(LARGE, "--sites layer --sparsity 0.34", DISTILL, 9.5),
    "half3m": Run(LARGE, "--sparsity 0.5 --quality best", DISTILL, 6.0, (1, 1)),
    "two-of-four3m": Run(LARGE, "--pattern 2:4 --quality best", DISTILL + " --learning-rate 3e-4", 7.0, (2, 4)),
}


def secateur(arguments: list[str]) -> float:
    """Runs the command line; seconds."""
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "secateur", *arguments], text=True, stderr=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.monotonic() - begin


def recovery(name: str, shared: Path, work: Path) -> dict[str, Any]:
    """Prune, recover, judge."""
    run, stories = RUNS[name], shared / "data" / "tinystories"
    model = shared / "models" / run.model
    pruned, recovered = work / f"{name}-pruned", work / f"{name}-recovered"
    quiet = ["--evaluate", "none", "--no-speed", "--quiet", "--json"]
    text = str(stories / "calibrate.jsonl")
    again = (pruned / "report.json").is_file()  # with --work, from the run before
    told = ["prune", str(model), *run.prune.split(), "--calibrate", text, *quiet, "--out", str(pruned)]
    prune = None if again else secateur(told)
    flags = [*run.recover.split(), "--steps", str(STEPS), "--batch", str(BATCH), "--length", str(LENGTH)]
    told = ["recover", str(pruned), *flags, "--data", text, *quiet, "--overwrite", "--out", str(recovered)]
    seconds = None if is_recovered(recovered, flags) else secateur(told)
    report = json.loads((recovered / "report.json").read_text())["recovery"]
    texts = read_texts(stories / "eval.jsonl")
    pattern = run.zeros if run.zeros != (1, 1) else None
    before, after = (judge(folder, model, texts, pattern) for folder in (pruned, recovered))
    if run.zeros is not None:
        assert same_zeros(pruned, recovered), "a zero was filled, or made"
    return {
        "model": run.model,
        "prune": run.prune,
        "recover": run.recover,
        "pruned": before["perplexity"],
        "recovered": after["perplexity"],
        "goal": run.goal,
        "reached": after["perplexity"] <= run.goal,
        "sparsity_before": before["sparsity"],
        "sparsity_after": after["sparsity"],
        "pattern_held": after.get("pattern_held"),
        "learning_rate": report["learning_rate"],
        "best_step": report["best_step"],
        "prune_seconds": prune and round(prune, 1),
        "recover_seconds": seconds and round(seconds, 1),
    }


def number_or_name(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def is_recovered(folder: Path, flags: list[str]) -> bool:
    """Whether a run before, with --work, was told the same."""
    from secateur import make_recovery

    if not (folder / "report.json").is_file():
        return False
    values = {k[2:].replace("-", "_"): number_or_name(v) for k, v in zip(flags[::2], flags[1::2], strict=True)}
    settings = json.loads((folder / "report.json").read_text())["recovery"]["settings"]
    return bool(settings | {"data": None} == make_recovery(values).model_dump(mode="json"))


def same_zeros(one: Path, two: Path) -> bool:
    """Whether two checkpoints have the same zeros, bit by bit, in all matrices of their layers."""
    from safetensors.torch import load_file

    first, second = (load_file(folder / "model.safetensors") for folder in (one, two))
    return all(bool(((first[n] == 0) == (second[n] == 0)).all()) for n in first if "proj" in n)


def overhead(shared: Path, work: Path) -> dict[str, Any]:
    """Seconds a step of our trainer and of a bare loop: same model, batches, loss and optimiser, in turns."""
    import torch

    from secateur import make_recovery
    from secateur.evaluation.loading import load
    from secateur.recovery import losses
    from secateur.recovery.sequences import Draw
    from secateur.recovery.task import prepare
    from secateur.recovery.trainer import Recoverer, arguments

    model, steps, device = shared / "models" / SMALL, 12, torch.device("cpu")
    text = str(shared / "data" / "tinystories" / "calibrate.jsonl")
    values = {"how": "distill", "loss": "logits", "steps": steps, "batch": BATCH, "length": LENGTH}
    told = make_recovery(values | {"learning_rate": 1e-4})
    task = prepare(model, told, text, model, device, "float32")
    teacher = load(model, "cpu", "float32").model
    student = task.model.requires_grad_(True)
    draw = Draw(task.text.train, steps * BATCH, 0)

    def bare() -> list[float]:
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.0)
        student.train()
        times = [time.perf_counter()]
        for step in range(steps):
            ids = torch.stack([draw[step * BATCH + i]["input_ids"] for i in range(BATCH)])
            own = student(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
            with torch.no_grad():
                other = teacher(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
            (losses.forward_kl(own, other) / len(own)).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter())
        return [b - a for a, b in itertools.pairwise(times[1:])]

    def ours() -> list[float]:
        times: list[float] = []
        how = arguments(told, work, device, torch.float32, 1e-4, steps, False)
        trainer = Recoverer(
            student, how, told, draw, task.text.held_out, teacher, stepped=lambda _: times.append(time.perf_counter())
        )
        trainer.train()
        trainer.close()
        return [b - a for a, b in itertools.pairwise(times)]

    rounds = [(bare(), ours()) for _ in range(5)]
    plain, full = (statistics.median(t for pair in rounds for t in pair[side]) for side in (0, 1))
    return {"bare_seconds": plain, "ours_seconds": full, "overhead": full / plain - 1, "goal": 0.10}


def ranks(shared: Path, work: Path) -> dict[str, Any]:
    """The loss curves of one process and of two with the same batch."""
    model, text = shared / "models" / SMALL, str(shared / "data" / "tinystories" / "calibrate.jsonl")
    told = [
        "recover",
        str(model),
        "--how",
        "full",
        "--data",
        text,
        "--steps",
        "20",
        "--batch",
        "8",
        "--length",
        "256",
    ]
    told += ["--learning-rate", "1e-3", "--evaluate-every", "5", "--evaluate", "none", "--no-speed", "--quiet"]
    secateur([*told, "--out", str(work / "one")])
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "secateur",
    ]
    subprocess.run(
        [*launch, *told, "--out", str(work / "two")], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    one, two = (json.loads((work / n / "report.json").read_text())["recovery"]["curve"] for n in ("one", "two"))
    differences = [
        abs(b[key] / a[key] - 1) for a, b in zip(one, two, strict=True) for key in ("loss", "held_out") if key in a
    ]
    return {"points": len(differences), "largest_difference": max(differences), "goal": 0.01}


def int8(shared: Path, work: Path) -> dict[str, Any]:
    """What a teacher as int8 holds, and how far its predictions are from the full one's, on all of eval.jsonl."""
    import torch

    from secateur.evaluation.loading import load
    from secateur.model.checkpoint import Checkpoint
    from secateur.recovery.int8 import load_int8

    texts, found = read_texts(shared / "data" / "tinystories" / "eval.jsonl"), {}
    for name in (SMALL, LARGE):
        folder, device = shared / "models" / name, torch.device("cpu")
        full, small = load(folder, "cpu", "float32"), load_int8(Checkpoint.open(folder), device, torch.float32)
        kl = tokens = 0.0
        for text in texts:
            ids = full.tokenizer(text, add_special_tokens=False).input_ids
            ids = torch.tensor([[full.tokenizer.bos_token_id, *ids][:512]])
            with torch.no_grad():
                own, other = (m(input_ids=ids).logits[0, :-1].double().log_softmax(-1) for m in (small, full.model))
            kl, tokens = kl + float((other.exp() * (other - own)).sum()), tokens + len(own)
        held = [
            sum({t.data_ptr(): t.nbytes for t in [*m.parameters(), *m.buffers()]}.values())
            for m in (small, full.model)
        ]
        found[name] = {"kl": kl / tokens, "bytes": held[0], "of_fp32": held[0] / held[1]}
    return found


PARTS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    **{name: (lambda shared, work, name=name: recovery(name, shared, work)) for name in RUNS},
    "overhead": overhead,
    "int8": int8,
    "ranks": ranks,
}


def write(found: dict[str, Any]) -> None:
    """Adds the parts to the results, and makes their table anew."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "recovery.json"
    results = (json.loads(file.read_text()) if file.is_file() else {}) | found
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "recovery.md").write_text(table(results), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--work", type=Path, help="keep the models in this folder")
    given = parser.parse_args()
    for name in given.part:
        with tempfile.TemporaryDirectory() as scratch:
            found = PARTS[name](given.shared, given.work or Path(scratch))
        print(name, json.dumps(found), flush=True)
        write({name: found})


if __name__ == "__main__":
    main()
