"""The report page: `report.json` as one HTML file that needs no network.

Nothing in it is fetched: styles and pictures are inline, and a content policy in its head forbids the rest. One
script is allowed, by its hash: it sorts tables, and all is readable without it. Every value is escaped by the
template engine, since samples are a model's raw output.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from secateur.report import facts, recovery, steps, tasks
from secateur.report import numbers as fmt
from secateur.report.compared import load_warning
from secateur.report.facts import Report, Tally
from secateur.report.html import charts, redundancy
from secateur.report.limits import limits
from secateur.report.verdict import verdict

PAGE_NAME = "report.html"

# Mixture models have thousands of sites; above this the table adds up the experts of a layer.
MAX_TABLE_ROWS = 1000
SITE_FIGURES: tuple[Callable[[Tally], float | None], ...] = (
    lambda tally: tally.mean("error_before_refit"),
    lambda tally: tally.mean("error_after_refit"),
    lambda tally: tally.damping,
)


def render(report: Report, evidence: Report | None = None) -> str:
    """The whole page as text.

    Args:
        report: the dict of `report.json`. Any key may be missing or None (a partial run): its part of the
            page is left out, or shows a dash.
        evidence: the dict of `evidence.json`, where there is one.
    """
    # The lookup of facts stays in Python; the templates only lay out.
    templates, found = environment(), {**_shared(report), "evidence": evidence}
    rows = _site_rows(report)
    sections = Markup(
        templates.get_template("sections.html.j2").render(
            **found,
            **_training(report),
            comparison=facts.comparison(report),
            sets=facts.by_set(report),
            kinds=facts.by_kind(report),
            removal=charts.removal_chart(report),
            site_rows=rows,
            site_figures=[fmt.numbers(figure(tally) for _, tally in rows) for figure in SITE_FIGURES],
            site_total=len(facts.items(report, "sites")),
            panels=charts.error_panels(report),
            stages=charts.stage_bars(report),
            total_seconds=Tally(facts.items(report, "stages")).total("seconds"),
            samples=facts.samples(report),
            dampings=facts.dampings(report),
            reconstruction=facts.items(report, "reconstruction"),
            predictions_tuned=any(block.get("predictions") for block in facts.items(report, "reconstruction")),
            limits=limits(report),
            requested=_requested(report),
            reasons=[redundancy.summary(site) for site in facts.items(evidence or {}, "sites") if site["removed"]],
            matrices=redundancy.matrices(evidence),
            loudest=redundancy.loudest(evidence),
            recipe=facts.recipe_text(report),
        )
    )
    return templates.get_template("page.html.j2").render(
        **found,
        sections=sections,
        contents=[(anchor, Markup(name)) for anchor, name in _HEADING.findall(sections)],
        verdict=verdict(report),
        sentence=facts.sentence(report),
        headline=facts.headline(report),
        busy=load_warning(facts.section(report, "evaluation", "after")),
    )


# Of the sections' own headings alone: whatever a report holds is escaped and has no tags.
_HEADING = re.compile(r'<h2 id="([\w-]+)">(.*?)</h2>')
_SECTIONS = ["model", "result", "calibration", "sparsity", "parameters", "evaluation", "versions", "device", "gate"]


def _shared(report: Report) -> dict[str, Any]:
    """What all parts of the page look at."""
    parts = {name: facts.section(report, name) for name in _SECTIONS}
    return {"report": report, "title": facts.title(report), **parts}


def _training(report: Report) -> dict[str, Any]:
    """What became of the model step by step, by training, and on tasks."""
    return {
        "recovery_sentence": recovery.sentence(report),
        "recovery_states": recovery.states(report),
        "recovery_lines": recovery.lines(report),
        "recovery_curve": recovery.curve(report),
        "steps_head": steps.head(report),
        "steps_rows": steps.rows(report),
        "steps_curve": steps.curve(report),
        "tasks_head": tasks.head(report),
        "tasks_rows": tasks.rows(report),
        "ranking_note": tasks.RANKING,
        "ranking_head": tasks.RANKING_HEAD,
        "ranking_rows": tasks.ranking(report),
    }


def write(report: Report, folder: Path | str, evidence: Report | None = None) -> Path:
    """Render the page to `report.html` in `folder` (which exists) and return its path.

    The file appears whole or not at all: it is written beside its place and renamed.
    """
    target = Path(folder) / PAGE_NAME
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".report-", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(render(report, evidence))
        os.chmod(temporary, 0o644)  # mkstemp makes private files; a report is for sharing
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def _requested(report: Report) -> str:
    """The sparsity that was asked for: one figure, or one per kind of site."""
    asked = facts.section(report, "sparsity").get("requested")
    if isinstance(asked, Mapping):
        return ", ".join(f"{facts.KINDS.get(kind, kind)} {fmt.percent(value)}" for kind, value in asked.items())
    return fmt.percent(asked)


def _site_rows(report: Report) -> list[tuple[str, Tally]]:
    sites = facts.items(report, "sites")
    if len(sites) <= MAX_TABLE_ROWS:
        return [(fmt.text(site.get("name")), Tally([site])) for site in sites]
    grouped = facts.group(sites, lambda site: (site.get("layer"), facts.lane(site)))
    return [(f"layer {layer}, {name}", tally) for (layer, name), tally in grouped.items()]


@functools.cache
def environment() -> jinja2.Environment:
    """The template engine: everything is escaped, and what is missing is an error.

    Templates find `script`, which sorts tables of the class `sorts`, and `policy`, which allows nothing else.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("secateur.report.html", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        name: getattr(fmt, name)
        for name in ("text", "number", "count", "short", "size", "percent", "seconds", "ratio", "threads")
    }
    environment.filters.update(filters)
    environment.filters["column"] = lambda rows, key: fmt.numbers(row.get(key) for row in rows)
    script = environment.get_template("sort.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    environment.globals |= {"script": Markup(script), "policy": Markup(policy)}
    return environment
