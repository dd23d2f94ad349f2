"""A real model on six tasks: as lm-eval judges it, pruned, recovered, aimed at one of them, calibrated on chats.

    python benchmarks/tasks.py --model MODEL           everything; MODEL is what shared/tools/real_model.py writes
    python benchmarks/tasks.py --model MODEL --parts dense,aim
    python benchmarks/tasks.py --model MODEL --limit 200 --threads 1
    python benchmarks/tasks.py --draw                  only the tables, from what is there

The parts, each a row or more of results/tasks.json, written at once; what is there already isn't measured again:

    dense    all items, and lm-eval's own figures where it is installed
    time     seconds of this, of lm-eval (one option a row, batches of 16) and of bare batched forward passes over the
             same tokens, in turns on the same items
    recover  25 % of the FFN channels, alone and with a distillation after it
    in use   the same, cut and distilled on text half of which is half of each task's questions; judged on the others
    best     the same, cut by the preset of that name
    aim      40 % of the channels, calibrated on general text and aimed at one task, with several --keep-general; that
             task on all items of the half that is held out
    chats    25 % of the channels, calibrated on conversations and on plain text of the same length

Models are made by the command line, in processes of their own. What became of each item under a model is kept beside
it in --work, so the dense model answers once; a stopped run goes on with the same --work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from _docs import between_marks
from _tasks_judge import Judge
from _tasks_lm_eval import lm_eval
from _tasks_seconds import seconds_of
from _tasks_tables import TASKS, tables
from _tasks_texts import general_text, in_use_text, training_text

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs" / "tasks.md"
BEGIN, END = "<!-- tasks: begin -->", "<!-- tasks: end -->"
GENERAL = (0.0, 0.3, 0.6)  # shares of general text in the runs that are aimed
SEQUENCES = "--samples 128 --length 256"
CUT = "--sites channel --method obs --quality fast --no-speed --no-explain"


class Bench:
    """Where things are, and how much is measured."""

    def __init__(self, told: argparse.Namespace, work: Path) -> None:
        self.model, self.work, self.told = told.model, work, told
        self.rows: list[dict[str, Any]] = read()

    def about(self) -> dict[str, Any]:
        """What every row says of its circumstances."""
        return {
            "limit": self.told.limit,
            "threads": self.told.threads,
            "load_before": round(os.getloadavg()[0], 2),
            "machine": platform.machine(),
            "dtype": self.told.dtype,
        }

    def have(self, part: str, case: str, **about: str) -> bool:
        asked = {"part": part, "case": case, "limit": self.told.limit, **about}
        return any(asked.items() <= row.items() for row in self.rows)

    def keep(self, part: str, case: str, **found: Any) -> None:
        self.rows.append({"part": part, "case": case, **self.about(), **found})
        write(self.rows)
        print(f"{part} {case}: {json.dumps(found)[:300]}", flush=True)

    def secateur(self, *words: object) -> str:
        """One command line in a process of its own; what it printed."""
        told = [sys.executable, "-m", "secateur", *map(str, words)]
        done = subprocess.run(told, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"secateur {' '.join(map(str, words))}\n{done.stderr[-2000:]}")
        return done.stdout

    def limits(self, flag: str) -> list[object]:
        return [] if self.told.limit is None else [flag, self.told.limit]

    def harness(self) -> tuple[Path, str, int, int | None]:
        """What lm-eval is told: model, dtype, threads, items."""
        return self.model, self.told.dtype, self.told.threads, self.told.limit

    def pruned(self, name: str, *words: object) -> tuple[Path, dict[str, Any]]:
        """Prunes, unless it was done before; the result, and its report's figures on text."""
        out = self.work / name
        if not (out / "report.json").is_file():
            where = ("--dtype", self.told.dtype, "--out", out, "-q")
            self.secateur("prune", self.model, *CUT.split(), *SEQUENCES.split(), *words, *where)
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        sides = {side: (report["evaluation"] or {}).get(side, {}).get("sets", {}) for side in ("before", "after")}
        texts = {s: {Path(n).name: f["perplexity"] for n, f in of.items()} for s, of in sides.items()}
        return out, {"perplexity": texts}

    def judged(self, out: Path, *names: str) -> dict[str, dict[str, Any]]:
        """A result beside the dense model, by task."""
        return self.judge(self.told.limit).compared(self.model, out, self.files(*names))

    def judge(self, limit: int | None) -> Judge:
        return Judge(self.work, self.told.dtype, limit)

    def files(self, *names: str) -> tuple[str, ...]:
        return tuple(str(SHARED / "data" / "tasks" / f"{name}.jsonl") for name in names or TASKS)


def dense(bench: Bench) -> None:
    """Task by task, each of the two tools in its turn, as all items take hours."""
    for name in TASKS:
        if not bench.have("dense", name, tool="secateur"):
            words = ("--tasks", *bench.files(name), *bench.limits("--limit"), "--dtype", bench.told.dtype)
            (task,) = json.loads(bench.secateur("eval", bench.model, *words, "--json"))["tasks"].values()
            own = {metric: figures["value"] for metric, figures in task["metrics"].items()}
            bench.keep("dense", name, tool="secateur", items=task["items"], metrics=own, seconds=task["seconds"])
        if not bench.have("dense", name, tool="lm-eval"):
            found = lm_eval(*bench.harness(), (name,))
            if found:
                bench.keep("dense", name, tool="lm-eval", **found[name])


def timed(bench: Bench) -> None:
    """Ours, bare passes over the same tokens, lm-eval, task by task, in turns, twice; the faster of two counts."""
    import torch

    from secateur.data.tasks import read_task
    from secateur.evaluation.loading import load

    torch.set_num_threads(bench.told.threads)
    loaded = load(bench.model, "cpu", bench.told.dtype)
    for name in TASKS:
        if not bench.have("time", name):
            limit = min(bench.told.limit or 200, 200)
            task = read_task(str(SHARED / "data" / "tasks" / f"{name}.jsonl")).first(limit)
            theirs = partial(lm_eval, *bench.harness()[:3], limit, (name,))
            bench.keep("time", name, items=limit, seconds=seconds_of(loaded, task, theirs))


class Recovery(NamedTuple):
    """A quarter of the channels gone, and a distillation after it.

    text_of     the text of the distillation
    half        of each task that it is judged on; empty for all of it
    cut         folder of the cut model, and the preset that cuts it
    alike       whether the cut is calibrated on the distillation's text, too; otherwise on web text alone
    """

    part: str
    text_of: Callable[..., str]
    half: str
    cut: tuple[str, str] = ("quarter", "fast")
    alike: bool = False


RECOVERIES = (
    Recovery("recover", training_text, ""),
    Recovery("in use", in_use_text, "@odd", ("in-use-quarter", "fast"), alike=True),
    Recovery("best", in_use_text, "@odd", ("best-quarter", "best"), alike=True),
)


def recovered(how: Recovery, bench: Bench) -> None:
    """Judged on the tasks, or on a half of each, after the cut and after the distillation."""
    general, held_out = general_text(bench.work, SHARED), bench.work / "held_out.jsonl"
    text, (folder, quality) = how.text_of(general, bench.work, SHARED), how.cut
    calibrate = text if how.alike else general
    told = ("--sparsity", 0.25, "--quality", quality, "--calibrate", calibrate, "--evaluate", held_out)
    cut, found = bench.pruned(folder, *told)
    specs, judge = tuple(file + how.half for file in bench.files()), bench.judge(bench.told.limit)
    if not bench.have(how.part, "cut"):
        bench.keep(how.part, "cut", tasks=judge.compared(bench.model, cut, specs), **found)
    if not bench.have(how.part, "distilled"):
        out, training = distilled(bench, cut, how.part.replace(" ", "-"), text)
        bench.keep(how.part, "distilled", **training, tasks=judge.compared(bench.model, out, specs))


def distilled(bench: Bench, cut: Path, name: str, text: str) -> tuple[Path, dict[str, Any]]:
    """A distillation, unless it was done before; the result, and how it was trained, with its figures on web text."""
    training = {key: getattr(bench.told, key) for key in ("steps", "batch", "length", "optimizer", "learning_rate")}
    out = bench.work / name
    if not (out / "report.json").is_file():
        flags = [x for key, value in training.items() if value for x in (f"--{key.replace('_', '-')}", value)]
        flags += ["--dtype", bench.told.dtype, "--no-speed", "--evaluate", bench.work / "held_out.jsonl"]
        bench.secateur("recover", cut, "--how", "distill", "--data", text, *flags, "--out", out, "-q")
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    texts = {state["state"]: state["perplexity"] for state in report["recovery"]["states"]}
    return out, {**training, "learning_rate": report["recovery"]["learning_rate"], "web": texts}


def aimed(bench: Bench) -> None:
    text, name = general_text(bench.work, SHARED), bench.told.aim
    (task,) = bench.files(name)
    half = (f"{task}@odd",)
    shared = ("--sparsity", 0.4, "--calibrate", text, "--evaluate", bench.work / "held_out.jsonl")
    cases: dict[str, tuple[object, ...]] = {"general text": ()}
    for keep in GENERAL:
        cases[f"{name}, {keep:g} general"] = ("--for-task", task, "--keep-general", keep)
    plain = bench.work / "general-text"
    others = [other for other in TASKS if other != name]
    for case, words in cases.items():
        if bench.have("aim", case):
            continue
        out, found = bench.pruned(case.replace(" ", "-").replace(",", ""), *shared, *words)
        everything = bench.judge(None)  # all items of the half that is held out
        (held_out,) = everything.compared(bench.model, out, half).values()
        gained = next(iter(everything.compared(plain, out, half).values())) if words else None
        bench.keep("aim", case, aim=name, held_out=held_out, gained=gained, tasks=bench.judged(out, *others), **found)


def chats(bench: Bench) -> None:
    """Conversations made of the questions of arc_easy and their answers; the odd ones are evaluated."""
    rows = [json.loads(x) for x in (SHARED / "data" / "tasks" / "arc_easy.jsonl").read_text().splitlines()]
    made = [
        {
            "messages": [
                {"role": "user", "content": row["query"].removeprefix("Question: ")},
                {"role": "assistant", "content": row["choices"][row["gold"]]},
            ]
        }
        for row in rows
    ]
    files = {"calibrate": made[::2], "held_out": made[1::2]}
    for name, own in files.items():
        (bench.work / f"chats-{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in own), encoding="utf-8")
    texts = {"conversations": bench.work / "chats-calibrate.jsonl", "plain text": general_text(bench.work, SHARED)}
    for case, text in texts.items():
        if bench.have("chats", case):
            continue
        evaluate = f"{bench.work / 'chats-held_out.jsonl'},{bench.work / 'held_out.jsonl'}"
        # As many sequences for both as the conversations give.
        words = ("--sparsity", 0.25, "--calibrate", text, "--evaluate", evaluate, "--samples", 96)
        bench.keep("chats", case, **bench.pruned(f"chats-{case[:4]}", *words)[1])


PARTS: dict[str, Callable[[Bench], None]] = {
    "dense": dense,
    "time": timed,
    "aim": aimed,
    "chats": chats,
    **{how.part: partial(recovered, how) for how in RECOVERIES},
}


def read() -> list[dict[str, Any]]:
    file = RESULTS / "tasks.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def write(rows: list[dict[str, Any]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tasks.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    head = "# Tasks\n\n`python benchmarks/tasks.py`, SmolLM2-135M-Instruct."
    (RESULTS / "tasks.md").write_text(f"{head}\n\n{tables(rows)}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder that shared/tools/real_model.py has written")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--limit", type=int, help="only the first items of each task")
    parser.add_argument("--aim", default="piqa", choices=("piqa", "arc_easy"))
    parser.add_argument("--steps", type=int, default=300, help="of the distillation")
    parser.add_argument("--batch", type=int, default=8, help="sequences of each of its steps")
    parser.add_argument("--length", type=int, default=512, help="tokens of its sequences")
    parser.add_argument("--optimizer", default="muon", choices=("muon", "adamw"))
    parser.add_argument("--learning-rate", type=float, help="default: a range test picks it")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--work", type=Path, help="folder for checkpoints; default: one that goes afterwards")
    parser.add_argument("--draw", action="store_true")
    told = parser.parse_args()
    if not told.draw:
        if told.model is None:
            parser.error("--model is needed: a folder that shared/tools/real_model.py has written")
        with tempfile.TemporaryDirectory(prefix="tasks-") as folder:
            work = told.work or Path(folder)
            work.mkdir(parents=True, exist_ok=True)
            os.environ["OMP_NUM_THREADS"] = str(told.threads)  # torch isn't imported yet
            bench = Bench(told, work)
            for part in told.parts.split(","):
                PARTS[part](bench)
    write(read())
    between_marks(DOCS, BEGIN, END, tables(read()))


if __name__ == "__main__":
    main()
