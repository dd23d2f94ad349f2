"""The section "How to run this" of results' cards: every line of it, run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from _client_commands import Command, Rule, rule_of
from _client_desk import Desk

RESULTS = ("uniform", "uneven")
_LOAD = Rule("from_pretrained", package="transformers", way="block", check="said = type(model).__name__ + ' loads'")
_LINE = re.compile(
    r"^- (?P<program>[\w., ]+?)(?: \([^)]*\))?: (?:`(?P<command>[^`]+)`|no: (?P<refused>.*))$", re.MULTILINE
)
_PADDED = re.compile(r"^As a stock class, [^:]*: `(?P<command>[^`]+)`\.$", re.MULTILINE)
_BLOCK = re.compile(r"^## Load\n\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def lines_of(card: str) -> list[tuple[str, str | None, str | None]]:
    """(program, command, why it's refused) for every line of the section.

    Raises:
        ValueError: there is no such section, or a line of it is none of the kinds that are known.
    """
    _, title, rest = card.partition("## How to run this\n")
    section = rest.partition("\n## ")[0]
    found = [(line["program"], line["command"], line["refused"]) for line in _LINE.finditer(section)]
    found += [("stock class", line["command"], None) for line in _PADDED.finditer(section)]
    known = len(found) + 1  # `DIR` is this folder
    paragraphs = [line for line in section.splitlines() if line.strip()]
    if not title or len(paragraphs) != known:
        raise ValueError(f"{known} of {len(paragraphs)} lines of the card's section are understood: {section[:200]}")
    return found


def run_card(desk: Desk, folder: Path) -> list[dict[str, Any]]:
    """A row for every line of a result's card; `out/small` of the desk is that result."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    block = _BLOCK.search(card)
    if block is None:
        raise ValueError(f"{folder}: its card doesn't say how to load it")
    loads = Command("python", block[1].replace("path/to/this/folder", "out/small"))
    rows = [desk.run(loads, _LOAD) | {"program": "transformers", "command": "the block under Load"}]
    for place, (program, shown, refused) in enumerate(lines_of(card)):
        if shown is None:
            rows.append(
                {"program": program, "command": "none", "ran": False, "why_not": f"the card says no: {refused}"}
            )
            continue
        command = Command("sh", re.sub(r"\bDIR\b", "out/small", shown.replace("DIR2", f"out/card-{place}")))
        rows.append(desk.run(command, rule_of(command)) | {"program": program, "command": shown})
        desk.close()
    return rows
