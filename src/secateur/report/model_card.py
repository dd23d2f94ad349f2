"""The README.md that goes with a pruned checkpoint: what it is, how to load it, what it costs, how to repeat it."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from secateur.report import facts, recovery, steps, tasks
from secateur.report import numbers as fmt
from secateur.report.facts import Report
from secateur.report.limits import limits
from secateur.report.model_index import model_index

PIPELINES = {  # the `Auto` class that opens a checkpoint -> what the hub calls its use
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
}


def model_card(report: Report, licence: str | None = None) -> str:
    """The card as Markdown, with the hub's YAML header. Parts that a partial report lacks are left out.

    Args:
        licence: of the original model, as the hub spells it.
    """
    parts = [
        _header(report, licence),
        f"# {_plain(facts.title(report))}, pruned",
        _summary(report),
        _loading(report),
        _running(report),
        _cuts(report),
        _figures(report),
        steps.markdown(report),
        recovery.markdown(report),
        tasks.markdown(report),
        _samples(report),
        _limits(report),
        _repeat(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(report: Report, licence: str | None) -> str:
    fields: dict[str, Any] = {"library_name": "transformers"}
    task = PIPELINES.get(_auto_class(report))
    if task:
        fields["pipeline_tag"] = task
    fields["tags"] = ["pruning", "secateur"]
    parent = _hub_id(report)
    if parent:
        fields["base_model"] = parent
    if licence:
        fields["license"] = licence
    index = model_index(report)
    if index:
        fields["model-index"] = index
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _hub_id(report: Report) -> str | None:
    """The parent's hub id. A path of somebody's machine is not one, though `out/a` looks the same."""
    name = str(facts.section(report, "model").get("path") or "")
    return name if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not Path(name).exists() else None


def _auto_class(report: Report) -> str:
    """The `Auto` class that opens the checkpoint, by the name of its architecture."""
    sources = (facts.section(report, key).get("architecture") for key in ("result", "model"))
    name = str(next((source for source in sources if source), "ForCausalLM"))
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "AutoModelForCausalLM"
    return next((auto for auto in PIPELINES if name.endswith(auto.removeprefix("AutoModel"))), "AutoModel")


def _summary(report: Report) -> str:
    sentence = facts.sentence(report)
    return f"Removed with Secateur: {_plain(sentence)}." if sentence else ""


def _loading(report: Report) -> str:
    remote = "trust_remote_code" in str(facts.section(report, "result").get("loader") or "")
    argument = ", trust_remote_code=True" if remote else ""
    auto = _auto_class(report)
    lines = [
        "## Load",
        "",
        "```python",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'model = {auto}.from_pretrained("path/to/this/folder"{argument})',
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        "```",
    ]
    if remote and not facts.section(report, "model").get("remote_code"):
        lines += ["", 'Without remote code: `import secateur; model = secateur.load("path/to/this/folder")`.']
    return "\n".join(lines)


_PROGRAMS = {"vllm": "vLLM", "llama.cpp": "llama.cpp, ollama", "onnx": "ONNX Runtime", "openvino": "OpenVINO"}


def _running(report: Report) -> str:
    """What other programs make of this very result."""
    ways = facts.section(report, "result").get("clients") or ()
    if not ways:
        return ""
    lines = ["## How to run this", "", "`DIR` is this folder, `DIR2` a new one.", ""]
    for way in ways:
        name = _PROGRAMS.get(way["client"], way["client"])
        tried = f" ({_plain(way['tried'])})" if way["tried"] else ""
        said = f"`{way['how']}`" if way["how"] else f"no: {_plain(way['refused'])}"
        lines.append(f"- {name}{tried}: {said}")
    uneven = "trust_remote_code" in str(facts.section(report, "result").get("loader") or "")
    if uneven and any(way["how"] is None for way in ways):
        lines += ["", "As a stock class, with zeros for what was cut: `secateur export DIR --to padded --out DIR2`."]
    return "\n".join(lines)


def _cuts(report: Report) -> str:
    rows = []
    for name, tally in facts.by_kind(report).items():
        left = f"{fmt.count(tally.total('kept'))} of {fmt.count(tally.total('units'))}"
        words = (name, fmt.percent(tally.sparsity), left, tally.names("method"), tally.names("pattern"))
        rows.append(_row(words))
    if not rows:
        return ""
    head = ["## What was cut", "", "| | removed | left | method | pattern |", "|---|---:|---:|---|---|"]
    return "\n".join([*head, *rows])


def _figures(report: Report) -> str:
    rows = [
        _row((row.label, row.before, row.after, f"{row.ratio} ({row.note})" if row.note else row.ratio))
        for row in facts.comparison(report)
    ]
    if not rows:
        return ""
    head = ["## Before and after", "", "| | before | after | ratio |", "|---|---:|---:|---:|"]
    return "\n".join([*head, *rows, *_where(report)])


def _where(report: Report) -> list[str]:
    """What the figures were measured on."""
    data = facts.section(report, "evaluation").get("data")
    if not data:
        return []
    tokens, digest = (facts.measured(report, "after", key) for key in ("tokens", "data_sha256"))
    size = f", {fmt.count(tokens)} tokens" if fmt.is_number(tokens) else ""
    digest = f" (sha256 `{digest}`)" if digest else ""
    return ["", f"Measured on {_plain(data)}{size}{digest}."]


def _samples(report: Report) -> str:
    found = facts.samples(report)
    if not found:
        return ""
    lines = ["## Samples", "", "The same prompt, continued greedily by both models."]
    for sample in found:
        words = f"prompt: {sample.prompt}\n\nbefore: {sample.before}\n\nafter:  {sample.after}"
        lines += ["", _fenced(words)]
    return "\n".join(lines)


def _limits(report: Report) -> str:
    lines = [f"- {_plain(line)}" for line in (*limits(report), *(report.get("warnings") or ()))]
    return "\n".join(["## Limits", "", *lines])


def _general(calibration: Mapping[str, Any]) -> str:
    count = calibration.get("general")
    return f", {fmt.text(count)} of them from Python's own text" if count else ""


def _repeat(report: Report) -> str:
    lines = ["## Repeat it"]
    if report.get("command"):
        lines += ["", _fenced(str(report["command"]), "sh")]
    recipe = facts.recipe_text(report)
    if recipe:
        lines += ["", "with this recipe:", "", _fenced(recipe, "yaml")]
    c = facts.section(report, "calibration")
    if c:
        lines += [
            "",
            f"Secateur {fmt.text(report.get('secateur'))}; calibration on {fmt.text(c.get('samples'))} sequences of "
            f"{fmt.text(c.get('length'))} tokens from {_plain(fmt.text(c.get('source')))}{_general(c)} "
            f"(sha256 `{fmt.text(c.get('data_sha256'))}`, seed {fmt.text(c.get('seed'))}).",
        ]
    lines += ["", "`plan.json` lists every cut, `report.html` shows them."]
    return "\n".join(lines)


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(words: Any) -> str:
    """Text on one line that Markdown takes as it is: no markup, no HTML, no end of a table cell."""
    line = html.escape(" ".join(str(words).split()), quote=False)
    return re.sub(r"(?<!\w)_|_(?!\w)|[\\`*\[\]|]", r"\\\g<0>", line)


def _fenced(words: str, language: str = "text") -> str:
    """A code block whose fence is longer than any run of backticks inside, so that the text can't end it."""
    longest = max((len(run) for run in re.findall(r"`+", words)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{words}\n{fence}"
