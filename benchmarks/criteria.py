"""Which criterion for FFN channels is best, and does it still matter once the reader is solved anew?

    python benchmarks/criteria.py --models stories260K,stories3M-fp16
    python benchmarks/criteria.py --models path/to/a,path/to/b --ratios 0.25 --methods obs,random

One calibration pass through each model gathers the statistics for all criteria at once. Then every criterion is cut
at every ratio from the untouched model, without and with the least-squares refit, and its perplexity measured. The
control is a random choice: the median of several seeds, and the one of them whose calibration KL to the untouched
model is the least. Writes results/criteria.json and .md, with ranks and spread.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import secateur
from secateur.allocation.uniform import keep_count
from secateur.calibration.gradients import gradients_of_model, hand_over
from secateur.cut.units import choose, mask_of, score_site
from secateur.data.documents import load_corpus
from secateur.evaluation.perplexity import perplexity
from secateur.evaluation.windows import Window, evaluation_length, windows
from secateur.methods import METHODS, Method
from secateur.model.linears import linears_of
from secateur.model.sites import Site, sites_of
from secateur.numerics.least_squares import least_squares_columns

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).resolve().parents[2] / "shared"
KL_SEQUENCES = 8  # for choosing the best of several random cuts


@dataclass(frozen=True)
class Place:
    """What a site's cuts need after the calibration pass: the reader, its second moments and means, all scores."""

    site: Site
    reader: Tensor
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
    outer = secateur.open_for_walk(model, "cpu", "float32")
    loss = frozenset(need for method in methods.values() for need in method.loss)
    needs = frozenset(need for method in methods.values() for need in method.statistics) | {"gram", "mean"}
    gradients = gradients_of_model(outer, tokens, loss) if loss else None
    places = []
    for block in secateur.walk(outer, tokens):
        hand_over(block, gradients, loss)
        family, head_dim = outer.checkpoint.family, outer.checkpoint.head_dim
        site = next(s for s in sites_of(block.layer, family, block.index, head_dim) if s.kind == "channel")
        moments = block.moments([site.reader], needs)[site.reader]
        reader = next(x for x in block.linears if x.name == site.reader).weight
        scores = {
            name: score_site(block, site, reader, moments, method, 0)
            for name, method in methods.items()
            if name != "random"
        }
        for seed in range(seeds if "random" in methods else 0):
            scores[f"random {seed}"] = score_site(block, site, reader, moments, methods["random"], seed)
        places.append(Place(site, reader, moments.gram, moments.mean, scores))
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
            next(x for x in linears_of(layers[p.site.layer], checkpoint.family) if x.name == p.site.reader)
            for p in places
        ]
        self.modules = [layers[p.site.layer].get_submodule(p.site.reader) for p in places]
        self.biases = [getattr(module, "bias", None) for module in self.modules]

    @torch.no_grad()
    def cut(self, name: str, ratio: float, repair: str) -> None:
        """Masks the readers' columns by one criterion; `repair` is none, refit, or bias."""
        for place, reader, module, bias in zip(self.places, self.readers, self.modules, self.biases, strict=True):
            keep = choose(place.scores[name], place.site, keep_count(place.site.units, ratio))
            columns = mask_of(keep, place.site.units)
            weight = place.reader * columns
            if repair == "refit":
                weight[:, columns] = least_squares_columns(place.reader, place.gram, columns).weight
            reader.weight = weight
            module.bias = bias
            if repair == "bias":
                shift = (place.reader - weight) @ place.mean
                module.bias = torch.nn.Parameter(shift if bias is None else bias + shift, requires_grad=False)

    def perplexity(self, found: list[Window]) -> float:
        return perplexity(self.model, found)[0].perplexity

    def kl(self, found: list[Window]) -> float:
        return perplexity(self.model, found, self.reference)[0].kl or 0.0


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All rows of one model."""
    methods = criteria(arguments.methods)
    calibration = secateur.calibrate(folder, str(arguments.calibrate), arguments.samples, arguments.length)
    begin = time.monotonic()
    places = gather(folder, calibration.tokens, methods, arguments.seeds)
    seconds = time.monotonic() - begin
    bench = Bench(folder, places)
    corpus, config = load_corpus(str(arguments.evaluate)), bench.model.config
    tokenizer = secateur.Checkpoint.open(folder).tokenizer()
    found = windows(corpus, tokenizer, evaluation_length(config), config.vocab_size)
    probe = [Window(tuple(row.tolist()), None) for row in calibration.tokens[:KL_SEQUENCES]]
    rows = list(_rows(bench, methods, found, probe, arguments))
    return {
        "model": folder.name,
        "parameters": sum(p.numel() for p in bench.reference.parameters()),
        "dense": perplexity(bench.reference, found)[0].perplexity,
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


def table(result: dict[str, Any]) -> str:
    """Markdown: a line for each criterion, without -> with refit at each ratio, and its mean rank with refit."""
    rows = result["rows"]
    ratios = sorted({row["ratio"] for row in rows})
    value = {(r["method"], r["ratio"], r["repair"]): r["perplexity"] for r in rows}
    names = list(dict.fromkeys(row["method"] for row in rows))
    ranks = {name: rank(value, names, ratios, name) for name in names}
    lines = [
        f"## {result['model']}, {result['parameters']:,} parameters, dense {result['dense']:.3f}",
        "",
        f"One calibration pass of {result['calibration_tokens']:,} tokens for all: "
        f"{result['calibration_seconds']:.1f} s. Perplexity without → with refit.",
        "",
        "| criterion | " + " | ".join(f"{ratio:.1%}" for ratio in ratios) + " | mean rank with refit |",
        "|---|" + "---|" * (len(ratios) + 1),
    ]
    for name in sorted(names, key=lambda n: ranks[n]):
        cells = []
        for ratio in ratios:
            pair = [value.get((name, ratio, repair)) for repair in ("none", "refit")]
            cells.append(" → ".join("" if v is None else f"{v:.4g}" for v in pair).removesuffix(" → "))
        shown = "" if math.isinf(ranks[name]) else f"{ranks[name]:.1f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {shown} |")
    lines += ["", spread(value, names, ratios), ""]
    return "\n".join(lines)


def rank(value: dict[tuple[str, float, str], float], names: list[str], ratios: list[float], name: str) -> float:
    """Mean place among the criteria with refit; infinite for rows that have none."""
    places = []
    for ratio in ratios:
        own = value.get((name, ratio, "refit"))
        if own is None:
            return math.inf
        others = [value[n, ratio, "refit"] for n in names if (n, ratio, "refit") in value]
        places.append(1 + sum(other < own for other in others))
    return statistics.mean(places)


def spread(value: dict[tuple[str, float, str], float], names: list[str], ratios: list[float]) -> str:
    """How much the choice matters: the worst informed criterion over the best, in each column."""
    parts = []
    informed = [name for name in names if not name.startswith("random")]
    for ratio in ratios:
        both = []
        for repair in ("none", "refit"):
            found = [value[n, ratio, repair] for n in informed if (n, ratio, repair) in value]
            both.append(f"{max(found) / min(found):.2f}")
        parts.append(f"{ratio:.1%}: {' → '.join(both)}")
    return f"Worst over best informed criterion, without → with refit: {'; '.join(parts)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="stories260K", help="folders, or names below shared/models; commas")
    parser.add_argument("--ratios", default="0.125,0.25,0.5")
    parser.add_argument("--methods", default="", help="criteria with commas; all unless given")
    parser.add_argument("--seeds", type=int, default=5, help="of the random control")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--calibrate", default=SHARED / "data" / "tinystories" / "calibrate.jsonl")
    parser.add_argument("--evaluate", default=SHARED / "data" / "tinystories" / "eval.jsonl")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.ratios = [float(part) for part in arguments.ratios.split(",")]
    arguments.methods = [part for part in arguments.methods.split(",") if part]
    results = []
    for name in arguments.models.split(","):
        folder = Path(name) if Path(name).is_dir() else SHARED / "models" / name
        if not folder.is_dir():
            raise SystemExit(f"{name}: no such model")
        print(folder.name, flush=True)
        results.append(measure(folder, arguments))
        write(results, arguments.out)


def write(results: list[dict[str, Any]], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "criteria.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    head = "# Criteria for FFN channels\n\nUniform over the layers, all from the untouched model; see criteria.py.\n"
    text = "\n".join([head, *map(table, results)])
    (out / "criteria.md").write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
