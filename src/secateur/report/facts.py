"""What a report says, before anyone draws it: the page, the model card and the terminal all read from here.

A report is the dict that becomes `report.json`. A run that was stopped early leaves keys out, so nothing
here requires one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from secateur.report import numbers as fmt
from secateur.report.compared import METRICS, Metric, Row, compared, judged
from secateur.report.passages import is_code, without_repetition

Report = Mapping[str, Any]

KINDS = {
    "channel": "FFN channels",
    "query_head": "Query heads",
    "kv_group": "KV groups",
    "latent": "Latent ranks",
    "expert": "Experts",
    "hidden": "Hidden dimensions",
    "attention": "Attention blocks",
    "ffn": "FFN blocks",
    "layer": "Layers",
}


AGREEMENT = {
    "cosine": "Cosine to the original's embeddings",
    "same_class": "Texts with the original's class",
    "same_label": "Tokens with the original's class",
    "same_token": "Masked tokens filled as by the original",
    "same_place": "Answers that begin or end as the original's",
}


WHOLE = ("Layers", "Attention blocks", "FFN blocks")  # they go as one


@dataclass(frozen=True)
class Sample:
    """A prompt and what each model wrote after it."""

    prompt: str
    before: str
    after: str
    pruned: str = ""  # between pruning and training, where there was one
    code: bool = False


@dataclass
class Tally:
    """Sites added up: units and parameters are sums, errors are means, damping is the highest."""

    sites: list[Mapping[str, Any]] = field(default_factory=list)

    def total(self, key: str) -> float | None:
        values = self._values(key)
        return sum(values) if values else None

    def mean(self, key: str) -> float | None:
        values = self._values(key)
        return sum(values) / len(values) if values else None

    @property
    def sparsity(self) -> float | None:
        """Removed units over all units; the mean of the sites' own figures where units are not given."""
        counted = [s for s in self.sites if fmt.is_number(s.get("units")) and fmt.is_number(s.get("kept"))]
        units = sum(s["units"] for s in counted)
        if len(counted) == len(self.sites) and units:
            return 1 - float(sum(s["kept"] for s in counted)) / float(units)
        return self.mean("sparsity")

    @property
    def gone(self) -> float | None:
        """Parameters taken out, and weights set to zero where they stay in the file."""
        counts = [count for key in ("parameters_removed", "weights_zeroed") if (count := self.total(key)) is not None]
        return sum(counts) if counts else None

    @property
    def damping(self) -> float | None:
        return max(self._values("damping"), default=None)

    def names(self, key: str) -> str:
        """The distinct values of a text field, in order of appearance."""
        return ", ".join(dict.fromkeys(str(s[key]) for s in self.sites if s.get(key))) or fmt.MISSING

    def _values(self, key: str) -> list[float]:
        return [s[key] for s in self.sites if fmt.is_number(s.get(key))]


def section(report: Report, *keys: str) -> Mapping[str, Any]:
    """The mapping under `keys`, or an empty one where any of them is missing or None."""
    found: Any = report
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def items(report: Report, key: str) -> list[Mapping[str, Any]]:
    """The mappings of the list under `key`, or none."""
    return [item for item in report.get(key) or [] if isinstance(item, Mapping)]


def measured(report: Report, side: str, key: str) -> Any:
    """A metric of one side ("before" or "after"); parameter counts are known without an evaluation too."""
    value = section(report, "evaluation", side).get(key)
    if value is None and key in ("parameters", "nonzero_parameters"):
        prefix = "nonzero_" if key.startswith("nonzero") else ""
        value = section(report, "parameters").get(prefix + side)
    return value


def comparison(report: Report) -> list[Row]:
    """The before/after table: one row per metric that at least one side has."""
    sides = [dict(section(report, "evaluation", side)) for side in ("before", "after")]
    for name, side in zip(("before", "after"), sides, strict=True):
        side |= {metric.key: measured(report, name, metric.key) for metric in METRICS}
    rows = compared(*sides)
    kl = section(report, "evaluation").get("kl")
    if kl is not None:
        label = "KL from the original, nats/token"
        rows.append(Row("kl", label, fmt.MISSING, fmt.number(kl), fmt.MISSING, fmt.MISSING, "unknown"))
    exported = section(report, "evaluation", "exported")
    if exported:
        metric = Metric("exported", f"Perplexity of the export, {exported.get('type')}", fmt.number, -1)
        rows.append(judged(metric, sides[0].get("perplexity"), exported.get("perplexity")))
    return rows + agreement(report)


def agreement(report: Report) -> list[Row]:
    """How far a model without a perplexity agrees with the original, a row for each text."""
    rows = []
    for name in section(report, "agreement"):
        found = section(report, "agreement", name)
        label = agreement_label(found, name)
        rows.append(Row("agreement", label, fmt.MISSING, alike(found), fmt.MISSING, fmt.MISSING, "unknown"))
    return rows


def agreement_label(found: Mapping[str, Any], name: str) -> str:
    """What agrees with the original, and on which text."""
    return f"{AGREEMENT.get(str(found.get('metric')), 'Like the original')}, {name}"


def alike(found: Mapping[str, Any]) -> str:
    """An agreement's value with its standard error: a cosine as it is, a part as a percentage."""
    value: Any = found.get("value")
    error: Any = found.get("stderr")
    if not fmt.is_number(value):
        return fmt.MISSING
    scale, unit = (1.0, "") if found.get("metric") == "cosine" else (100.0, "%")
    number = f"{value:.4f}" if scale == 1.0 else f"{scale * value:.2f}{unit}"
    return number + (f" ± {fmt.number(scale * error)}" if fmt.is_number(error) else "")


def headline(report: Report) -> list[Row]:
    """Up to four rows that answer: how much worse, how much smaller, how much faster."""
    rows = {row.key: row for row in comparison(report)}
    # Zeros in a dense file change neither the parameter count nor the size: show what did change.
    smaller = "parameters"
    if "nonzero_parameters" in rows and rows.get("parameters", rows["nonzero_parameters"]).verdict == "same":
        smaller = "nonzero_parameters"
    keys = ("perplexity", smaller, "bytes_on_disk", "decode_tokens_per_s")
    return [rows[key] for key in keys if key in rows and rows[key].ratio != fmt.MISSING]


def by_set(report: Report) -> list[Row]:
    """Perplexity on each text apart, where more than one was measured; otherwise nothing."""
    sides = [section(report, "evaluation", side, "sets") for side in ("before", "after")]
    names = list(dict.fromkeys(name for side in sides for name in side))
    rows = []
    for name in names if len(names) > 1 else ():
        before, after = (section(side, name).get("perplexity") for side in sides)
        rows.append(judged(Metric(name, name, fmt.number, -1), before, after))
    return rows


def lane(site: Mapping[str, Any]) -> str:
    """The line of the picture a site belongs to: its Linear for weights (experts together), else its kind."""
    if site.get("kind") == "weight":
        return re.sub(r"\.\d+(?=\.|$)", ".*", str(site.get("linear") or site.get("name") or "weights"))
    return KINDS.get(str(site.get("kind")), fmt.text(site.get("kind")))


def group(sites: Iterable[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], Any]) -> dict[Any, Tally]:
    """Sites tallied by any key, in order of first appearance."""
    groups: dict[Any, Tally] = {}
    for site in sites:
        groups.setdefault(key(site), Tally()).sites.append(site)
    return groups


def by_kind(report: Report) -> dict[str, Tally]:
    """Sites tallied by kind, under a name for people."""
    return group(items(report, "sites"), lambda s: "Weights" if s.get("kind") == "weight" else lane(s))


def dampings(report: Report) -> list[tuple[float, list[str]]]:
    """(damping, names of the sites solved with it), lowest first. More than one line means some were raised."""
    solved = [s for s in items(report, "sites") if fmt.is_number(s.get("damping"))]
    groups = group(solved, lambda s: float(s["damping"]))
    return [(value, [fmt.text(s.get("name")) for s in groups[value].sites]) for value in sorted(groups)]


def title(report: Report) -> str:
    """The model's name without the folders that lead to it; a hub id keeps its owner."""
    path = str(section(report, "model").get("path") or "").rstrip("/\\")
    local = path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path
    return (re.split(r"[/\\]", path)[-1] if local else path) or "model"


def sentence(report: Report) -> str:
    """What was removed, in one line: "25.0% of FFN channels (obs) in 6 layers; 11.0% of all parameters"."""
    parts = []
    for name, tally in by_kind(report).items():
        touched = {s.get("layer") for s in tally.sites if (s.get("sparsity") or 0) > 0} - {None}
        method = tally.names("method")
        how = "" if method == fmt.MISSING else f" ({method})"
        if name in WHOLE:
            cut = sorted(layer for layer in touched if layer is not None)
            where = ", ".join(map(str, cut)) or "none"
            parts.append(f"{len(cut)} of {len(tally.sites)} {_lower(name)}{how}: {where}")
        else:
            where = f" in {len(touched)} {'layer' if len(touched) == 1 else 'layers'}" if touched else ""
            parts.append(f"{fmt.percent(tally.sparsity)} of {_lower(name)}{how}{where}")
    share = section(report, "sparsity").get("parameters")
    if fmt.is_number(share):
        parts.append(f"{fmt.percent(share)} of all parameters")
    return "; ".join(parts)


def _lower(name: str) -> str:
    return name if name[:2].isupper() else name[:1].lower() + name[1:]


def samples(report: Report) -> list[Sample]:
    """Text samples with the prompt taken off the front of each continuation, and without endless repetition."""
    found = []
    for item in items(report, "samples"):
        prompt = str(item.get("prompt") or "")
        before, after, pruned = (_continuation(item.get(side), prompt) for side in ("before", "after", "pruned"))
        found.append(Sample(prompt, before, after, pruned, is_code(prompt + before)))
    return found


def _continuation(written: Any, prompt: str) -> str:
    text, repeats = without_repetition(str(written or "").removeprefix(prompt).strip(" "))
    return f"{text} [and so on: it repeats itself]" if repeats else text


def recipe_text(report: Report) -> str:
    """The recipe as YAML: as it was written, or dumped from the dict where only that is known."""
    if report.get("recipe_yaml"):
        return str(report["recipe_yaml"]).strip("\n")
    recipe = section(report, "recipe")
    return yaml.safe_dump(dict(recipe), sort_keys=False).strip("\n") if recipe else ""
