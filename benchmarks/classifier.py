"""Which criterion for FFN channels is best for a small BERT that classifies? arXiv 2406.00030 was tried on these.

    python benchmarks/classifier.py --work out/classifier --data path/to/corpus
    python benchmarks/classifier.py --work out/classifier --methods mi,obs,random --ratios 0.5

The classifier is trained first where WORK has none (scripts/train_classifier.py, some minutes). Every criterion is
cut at every ratio from the untouched model, on the same passages of the training part, each whole and alone; then the
test passages are classified, without and with the least-squares refit of what reads the channels. Gradients (taylor,
fisher) are of the loss of the class that the model itself finds likeliest: the calibration has no labels. The control
is a random choice, the mean of several seeds. Writes results/classifier.json and .md, and the table in docs/tasks.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from _docs import between_marks
from criteria import Bench, criteria, gather
from torch import Tensor

import secateur
from secateur.data.items import Labelled
from secateur.data.tasks import read_task
from secateur.evaluation.loading import Loaded, load
from secateur.evaluation.tasks.labels import classify, numbers_of
from secateur.evaluation.tasks.outcome import figures_of
from secateur.numerics.f1 import macro_f1

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
PAGE = ROOT / "docs" / "tasks.md"
MARKS = "<!-- classifier: begin -->", "<!-- classifier: end -->"
LENGTH = 32  # tokens of a calibration sequence: a passage from [CLS] to [SEP]


def trained(work: Path, data: Path, seed: int) -> dict[str, Any]:
    """The facts of the classifier in a folder, which is trained first where there's none."""
    file = work / "facts.json"
    if not file.is_file():
        script = ROOT / "scripts" / "train_classifier.py"
        command = [sys.executable, str(script), "--data", str(data), "--out", str(work), "--seed", str(seed)]
        subprocess.run(command, check=True)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def calibration(work: Path, samples: int) -> Tensor:
    """Token ids (samples, LENGTH) of training passages that have as many tokens, the rest of them cut off."""
    tokenizer = secateur.Checkpoint.open(work / "model").tokenizer()
    with (work / "train.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    rows = tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
    whole = [row for row in rows if len(row) == LENGTH][:samples]
    if len(whole) < samples:
        raise SystemExit(f"{work}: only {len(whole)} training passages have {LENGTH} tokens; take fewer --samples")
    return torch.tensor(whole)


class Judge:
    """The test passages, and what a model makes of them."""

    def __init__(self, work: Path, items: int) -> None:
        self.loaded = load(work / "model", "cpu", "float32", encoders=True)
        task = read_task(str(work / "test.jsonl"))
        self.items = [item for item in task.first(items).items if isinstance(item, Labelled)]
        self.gold = numbers_of(self.loaded.model.config, [item.label for item in self.items], task.spec)
        self.dense = self._found(self.loaded)

    def _found(self, loaded: Loaded) -> list[int]:
        return classify(loaded, self.items, "test")[0]

    def figures(self, model: Any | None = None) -> dict[str, Any]:
        """Accuracy with its standard error, macro F1, and the part that gets the class that the dense model gives."""
        own = self.loaded if model is None else Loaded("", model, self.loaded.tokenizer, *self._where)
        found = self.dense if model is None else self._found(own)
        right = figures_of("acc", [float(a == b) for a, b in zip(found, self.gold, strict=True)])
        same = [float(a == b) for a, b in zip(found, self.dense, strict=True)]
        return {
            "accuracy": right["value"],
            "stderr": right["stderr"],
            "f1": macro_f1(found, self.gold),
            "same": statistics.mean(same),
        }

    @property
    def _where(self) -> tuple[torch.device, torch.dtype]:
        return self.loaded.device, self.loaded.dtype


def rows(bench: Bench, judge: Judge, names: list[str], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for ratio in arguments.ratios:
        for repair in ("none", "refit"):
            for name in names:
                seeds = [f"random {seed}" for seed in range(arguments.seeds)] if name == "random" else [name]
                found = []
                for own in seeds:
                    bench.cut(own, ratio, repair)
                    found.append(judge.figures(bench.model))
                row = {key: statistics.mean(one[key] for one in found) for key in found[0]}
                if len(found) > 1:
                    row |= {"lowest": min(x["accuracy"] for x in found), "highest": max(x["accuracy"] for x in found)}
                print(f"  {ratio:.2f} {repair:6} {name:20} {row['accuracy']:.4f} {row['f1']:.4f}", flush=True)
                yield {"method": name, "ratio": ratio, "repair": repair, **row}


def table(result: dict[str, Any]) -> str:
    """A line for each criterion: accuracy / macro F1 in per cent, without and with refit at each ratio."""
    cells = {(r["method"], r["ratio"], r["repair"]): r for r in result["rows"]}
    ratios = list(dict.fromkeys(r["ratio"] for r in result["rows"]))
    names = list(dict.fromkeys(r["method"] for r in result["rows"]))
    last = (ratios[-1], "none")
    names.sort(key=lambda name: -cells[name, *last]["accuracy"])
    columns = [(ratio, repair) for ratio in ratios for repair in ("none", "refit")]
    heads = [f"{ratio:.0%}" + (", refit" if repair == "refit" else "") for ratio, repair in columns]
    lines = [f"| criterion | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for name in names:
        shown = [f"{100 * c['accuracy']:.1f} / {100 * c['f1']:.1f}" for c in (cells[name, *k] for k in columns)]
        lines.append(f"| `{name}` | {' | '.join(shown)} |")
    dense, facts = result["dense"], result["trained"]
    lines += [
        "",
        f"Accuracy / macro F1 in per cent. Dense: {100 * dense['accuracy']:.1f} / {100 * dense['f1']:.1f}, standard "
        f"error {100 * dense['stderr']:.1f}; {result['items']:,} test passages of {facts['words']} words, "
        f"{len(facts['labels'])} classes, {facts['parameters']:,} parameters, "
        f"{facts['shape']['num_hidden_layers']} layers of {facts['shape']['intermediate_size']} channels, trained on "
        f"{facts['passages']:,} passages. `random` is the mean of {result['seeds']} seeds. "
        f"{result['samples']} sequences of {LENGTH} tokens calibrate; float32, "
        f"transformers {result['transformers']}.",
    ]
    return "\n".join(lines)


def arguments_of_main() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder with the classifier, or for it")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "pretrain", help="corpus, where it's trained")
    parser.add_argument("--ratios", default="0.25,0.5,0.75")
    parser.add_argument("--methods", default="", help="criteria with commas; all unless given")
    parser.add_argument("--seeds", type=int, default=3, help="of the random control")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--items", type=int, default=400, help="test passages, the first ones")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE, help="page that gets the table between its marks")
    arguments = parser.parse_args()
    arguments.ratios = [float(part) for part in arguments.ratios.split(",")]
    return arguments


def main() -> None:
    arguments = arguments_of_main()
    facts = trained(arguments.work, arguments.data, arguments.seed)
    methods = criteria([part for part in arguments.methods.split(",") if part])
    begin = time.process_time()
    places = gather(
        arguments.work / "model", calibration(arguments.work, arguments.samples), methods, arguments.seeds
    )
    bench, judge = Bench(arguments.work / "model", places), Judge(arguments.work, arguments.items)
    result = {
        "trained": facts,
        "dense": judge.figures(),
        "samples": arguments.samples,
        "items": len(judge.items),
        "seeds": arguments.seeds,
        "transformers": transformers.__version__,
        "rows": list(rows(bench, judge, list(methods), arguments)),
    }
    result["cpu_seconds"] = round(time.process_time() - begin, 1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "classifier.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    head = "# A classifier's channels\n\nSee classifier.py.\n\n"
    (arguments.out / "classifier.md").write_text(f"{head}{table(result)}\n", encoding="utf-8")
    between_marks(arguments.page, *MARKS, table(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
