"""Which criterion for FFN channels is best, and does it still matter once the reader is solved anew?

    python benchmarks/criteria.py --models stories260K,stories3M-fp16
    python benchmarks/criteria.py --models path/to/a,path/to/b --ratios 0.25 --methods obs,random
    python benchmarks/criteria.py --family out/family

One calibration pass through each model gathers the statistics for all criteria at once. Then every criterion is cut
at every ratio from the untouched model, without and with the least-squares refit, and its perplexity measured. The
control is a random choice: the median of several seeds, and the one of them whose calibration KL to the untouched
model is the least. Writes results/criteria.json and .md, with ranks and spread.

`--family` takes the models of scripts/train_family.py, with the texts that lie beside them, and shows how much the
choice matters by size: arXiv 2406.00030 finds that it does in small models and doesn't in large ones. Writes
results/criteria-family.json, .md and a picture for each ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _criteria_tables import table, write
from _protocol import context_of
from _spread import write_family
from torch import Tensor

import secateur
from secateur.calibration.gradients import gradients_of_model, hand_over
from secateur.cut.units import choose, mask_of, score_site
from secateur.data.documents import load_corpus
from secateur.evaluation.perplexity import perplexity
from secateur.evaluation.windows import Window, evaluation_length, windows
from secateur.methods import METHODS, Method
from secateur.model.linears import linears_of
from secateur.model.sites import Site, sites_of
from secateur.numerics.keep_counts import keep_count
from secateur.numerics.least_squares import least_squares_columns

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).resolve().parents[2] / "shared"
TRAINING = ("tokens", "steps", "seed", "shape", "hyper", "data", "elapsed")
KL_SEQUENCES = 8  # for choosing the best of several random cuts


@dataclass(frozen=True)
class Place:
    """What a site's cuts need after the calibration pass: the reader, its second moments and means, all scores."""

    site: Site
    consumer: Tensor
    gram: Tensor
    mean: Tensor
    scores: dict[str, Tensor]


def criteria(names: list[str]) -> dict[str, Method]:
    able = {name: method for name, method in METHODS.items() if method.score_units is not None}
    unknown = set(names) - set(able)
    if unknown:
        raise SystemExit(f"no criteria for units: {', '.join(sorted(unknown))}; known are {', '.join(able)}")
    return {name: able[name] for name in names} if names else able


def gather(model: Path, tokens: Tensor, methods: dict[str, Method], seeds: int) -> list[Place]:
    """One walk through the untouched model: statistics for all criteria, and every criterion's scores."""
    streamed = secateur.open_for_walk(model, "cpu", "float32")
    loss = frozenset(need for method in methods.values() for need in method.loss)
    needs = frozenset(need for method in methods.values() for need in method.statistics) | {"gram", "mean"}
    gradients = gradients_of_model(streamed, tokens, loss) if loss else None
    places = []
    for block in secateur.walk(streamed, tokens):
        hand_over(block, gradients, loss)
        family, head_dim = streamed.checkpoint.family, streamed.checkpoint.head_dim
        site = next(s for s in sites_of(block.layer, family, block.index, head_dim) if s.kind == "channel")
        moments = block.moments([site.consumer], needs)[site.consumer]
        consumer = next(x for x in block.linears if x.name == site.consumer).weight
        scores = {
            name: score_site(block, site, consumer, moments, method, 0)
            for name, method in methods.items()
            if name != "random"
        }
        for seed in range(seeds if "random" in methods else 0):
            scores[f"random {seed}"] = score_site(block, site, consumer, moments, methods["random"], seed)
        places.append(Place(site, consumer, moments.gram, moments.mean, scores))
    return places


class Bench:
    """A model whose readers are set to one cut after the other."""

    def __init__(self, folder: Path, places: list[Place]) -> None:
        self.places = places
        self.model = secateur.load(folder, "cpu", "float32")
        self.reference = secateur.load(folder, "cpu", "float32")
        checkpoint = secateur.Checkpoint.open(folder)
        layers = self.model.get_submodule(checkpoint.family.layers)
        self.readers = [
            next(x for x in linears_of(layers[p.site.layer], checkpoint.family) if x.name == p.site.consumer)
            for p in places
        ]
        self.modules = [layers[p.site.layer].get_submodule(p.site.consumer) for p in places]
        self.biases = [getattr(module, "bias", None) for module in self.modules]

    @torch.no_grad()
    def cut(self, name: str, ratio: float, repair: str) -> None:
        """Masks the readers' columns by one criterion; `repair` is none, refit, or bias."""
        for place, consumer, module, bias in zip(self.places, self.readers, self.modules, self.biases, strict=True):
            keep = choose(place.scores[name], place.site, keep_count(place.site.units, ratio))
            columns = mask_of(keep, place.site.units)
            weight = place.consumer * columns
            if repair == "refit":
                weight[:, columns] = least_squares_columns(place.consumer, place.gram, columns).weight
            consumer.weight = weight
            module.bias = bias
            if repair == "bias":
                shift = (place.consumer - weight) @ place.mean
                module.bias = torch.nn.Parameter(shift if bias is None else bias + shift, requires_grad=False)

    def perplexity(self, found: list[Window]) -> float:
        return perplexity(self.model, found)[0].perplexity

    def kl(self, found: list[Window]) -> float:
        return perplexity(self.model, found, self.reference)[0].kl or 0.0


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All rows of one model."""
    methods = criteria(arguments.methods)
    length = context_of(folder, arguments.length)
    calibration = secateur.calibrate(folder, str(arguments.calibrate), arguments.samples, length)
    begin = time.monotonic()
    places = gather(folder, calibration.tokens, methods, arguments.seeds)
    seconds = time.monotonic() - begin
    bench = Bench(folder, places)
    corpus, config = load_corpus(str(arguments.evaluate)), bench.model.config
    tokenizer = secateur.Checkpoint.open(folder).tokenizer()
    found = windows(corpus, tokenizer, evaluation_length(config), config.vocab_size)[: arguments.documents]
    probe = [Window(tuple(row.tolist()), None) for row in calibration.tokens[:KL_SEQUENCES]]
    rows = list(_rows(bench, methods, found, probe, arguments))
    return {
        "model": folder.name,
        "parameters": sum(p.numel() for p in bench.reference.parameters()),
        "dense": perplexity(bench.reference, found)[0].perplexity,
        "evaluated_tokens": sum(len(window.ids) - 1 for window in found),
        "calibration_tokens": calibration.tokens.numel(),
        "calibration_seconds": round(seconds, 2),
        "rows": rows,
    }


def _rows(
    bench: Bench, methods: dict[str, Method], found: list[Window], probe: list[Window], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    for ratio in arguments.ratios:
        for repair in ("none", "refit"):
            for name in methods:
                if name != "random":
                    bench.cut(name, ratio, repair)
                    yield _row(name, ratio, repair, bench.perplexity(found))
            if "random" in methods:
                yield from _random(bench, ratio, repair, found, probe, arguments.seeds)
        if "flap" in methods:
            bench.cut("flap", ratio, "bias")
            yield _row("flap + its bias", ratio, "none", bench.perplexity(found))


def _random(
    bench: Bench, ratio: float, repair: str, found: list[Window], probe: list[Window], seeds: int
) -> Iterator[dict[str, Any]]:
    """The control: the median of the seeds, and the seed that a look at the calibration text would choose."""
    results, divergences = [], []
    for seed in range(seeds):
        bench.cut(f"random {seed}", ratio, repair)
        results.append(bench.perplexity(found))
        divergences.append(bench.kl(probe))
    row = _row("random", ratio, repair, statistics.median(results))
    yield {**row, "lowest": min(results), "highest": max(results), "seeds": seeds}
    best = results[divergences.index(min(divergences))]
    yield _row(f"random, best of {seeds} by KL", ratio, repair, best)


def _row(name: str, ratio: float, repair: str, value: float) -> dict[str, Any]:
    print(f"  {ratio:6.3f} {repair:6} {name:28} {value:10.3f}", flush=True)
    return {"method": name, "ratio": ratio, "repair": repair, "perplexity": value}


def arguments_of_main() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="stories260K", help="folders, or names below shared/models; commas")
    parser.add_argument("--family", type=Path, help="instead: a folder of scripts/train_family.py, with its texts")
    parser.add_argument("--ratios", default="0.125,0.25,0.5")
    parser.add_argument("--methods", default="", help="criteria with commas; all unless given. Other rows stay")
    parser.add_argument("--seeds", type=int, default=5, help="of the random control")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence, at most the context")
    parser.add_argument("--documents", type=int, help="evaluate only the first ones")
    parser.add_argument("--calibrate", type=Path)
    parser.add_argument("--evaluate", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.ratios = [float(part) for part in arguments.ratios.split(",")]
    arguments.methods = [part for part in arguments.methods.split(",") if part]
    texts = arguments.family or SHARED / "data" / "tinystories"
    arguments.calibrate = arguments.calibrate or texts / "calibrate.jsonl"
    arguments.evaluate = arguments.evaluate or texts / ("evaluate.jsonl" if arguments.family else "eval.jsonl")
    return arguments


def family(arguments: argparse.Namespace) -> None:
    """Measures the models that are trained to their end; those measured before by the same settings aren't again."""
    file = arguments.out / "criteria-family.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    asked = {key: getattr(arguments, key) for key in ("ratios", "methods", "seeds", "samples", "documents")}
    for record in sorted(arguments.family.glob("*/loss_curve.json")):
        trained = json.loads(record.read_text(encoding="utf-8"))
        training = {key: trained[key] for key in TRAINING} | {"end": trained["curve"][-1]}
        if trained["step"] < trained["steps"]:
            print(f"{record.parent.name} is left out: it isn't trained to its end", flush=True)
            continue
        if any((r["asked"], r["training"]) == (asked, training) for r in results):
            continue
        found = timed(record.parent, arguments) | {"asked": asked, "training": training}
        results = [r for r in results if r["asked"] == asked and r["model"] != found["model"]] + [found]
        write_family(results, table, arguments.out)


def timed(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    print(folder.name, flush=True)
    begin = time.process_time()
    result = measure(folder, arguments)
    print(f"  {time.process_time() - begin:.0f} processor seconds", flush=True)
    return result


def main() -> None:
    arguments = arguments_of_main()
    if arguments.family:
        return family(arguments)
    file, results = arguments.out / "criteria.json", []
    before = json.loads(file.read_text(encoding="utf-8")) if arguments.methods and file.is_file() else []
    for name in arguments.models.split(","):
        folder = Path(name) if Path(name).is_dir() else SHARED / "models" / name
        if not folder.is_dir():
            raise SystemExit(f"{name}: no such model")
        results.append(_added(timed(folder, arguments), before))
        write(
            results + [old for old in before if old["model"] not in {new["model"] for new in results}], arguments.out
        )
    return None


def _added(new: dict[str, Any], before: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows of a few criteria among those of the others that were measured before, on the same model and text."""
    same = ("model", "parameters", "dense", "evaluated_tokens", "calibration_tokens")
    old = next((o for o in before if all(o[key] == new[key] for key in same)), None)
    if old is None:
        return new
    names = {row["method"] for row in new["rows"]}
    rows = [row for row in old["rows"] if row["method"] not in names] + new["rows"]
    return old | {"rows": rows, "added": sorted(set(old.get("added", [])) | names)}


if __name__ == "__main__":
    main()
