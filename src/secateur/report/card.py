"""The README.md that goes with a pruned checkpoint: what it is, how to load it, what it costs, how to repeat it."""

from __future__ import annotations

from typing import Any

import yaml

from secateur.report import facts
from secateur.report import format as fmt
from secateur.report.facts import Report
from secateur.report.limits import limits


def model_card(report: Report) -> str:
    """The card as Markdown, with the hub's YAML header."""
    parts = [
        _header(report),
        f"# {facts.title(report)}",
        facts.sentence(report),
        _loading(report),
        _cuts(report),
        _figures(report),
        _limits(report),
        _repeat(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(report: Report) -> str:
    name = str(facts.section(report, "model").get("path") or "")
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pruning", "secateur"],
    }
    # A hub id names the parent; a path of somebody's machine is nobody's business.
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        fields["base_model"] = name
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _loading(report: Report) -> str:
    remote = "trust_remote_code" in str(facts.section(report, "result").get("loader") or "")
    argument = ", trust_remote_code=True" if remote else ""
    lines = [
        "## Load",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder"{argument})',
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        "```",
    ]
    if remote:
        lines += ["", 'Without remote code: `import secateur; model = secateur.load("path/to/this/folder")`.']
    return "\n".join(lines)


def _cuts(report: Report) -> str:
    rows = [
        f"| {name} | {fmt.percent(tally.sparsity)} | {fmt.count(tally.total('kept'))} of "
        f"{fmt.count(tally.total('units'))} | {tally.names('method')} |"
        for name, tally in facts.by_kind(report).items()
    ]
    if not rows:
        return ""
    return "\n".join(["## What was cut", "", "| | removed | left | method |", "|---|---:|---:|---|", *rows])


def _figures(report: Report) -> str:
    rows = [f"| {row.label} | {row.before} | {row.after} | {row.ratio} |" for row in facts.comparison(report)]
    if not rows:
        return ""
    data = facts.section(report, "evaluation").get("data")
    where = [f"\nMeasured on {data}."] if data else []
    head = ["## Before and after", "", "| | before | after | ratio |", "|---|---:|---:|---:|"]
    return "\n".join([*head, *rows, *where])


def _limits(report: Report) -> str:
    lines = [f"- {line}" for line in (*limits(report), *report.get("warnings", ()))]
    return "\n".join(["## Limits", "", *lines]) if lines else ""


def _repeat(report: Report) -> str:
    calibration = facts.section(report, "calibration")
    version = report.get("secateur")
    lines = ["## Repeat it", "", f"    {report.get('command')}", ""]
    if calibration:
        lines.append(
            f"with Secateur {version}; calibration on {calibration.get('samples')} sequences of "
            f"{calibration.get('length')} tokens from {calibration.get('source')} "
            f"(sha256 `{calibration.get('data_sha256')}`, seed {calibration.get('seed')})."
        )
    lines.append("`plan.json` lists every cut, `report.html` shows them.")
    return "\n".join(lines)
