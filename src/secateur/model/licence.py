"""The licence of a model, as the hub spells it: what its card declares, or what the text beside its weights is."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from secateur.model.side_files import is_plain

CARD = "README.md"
HEADER_BYTES = 2**16  # of a card, in which its header has to end
_LICENSES = {"apache license": "apache-2.0", "mit license": "mit"}
_ANCHOR = re.compile(r"(?:^|[\s\[{,:-])[&*]\w", re.MULTILINE)  # what they stand for can multiply
_SPELLED = re.compile(r"[\w.+-]{1,60}")


def licence_of(folder: Path) -> str | None:
    """What the card in a folder declares, or else the licence file's name for itself; `other` for a text that isn't
    known, and None where there is neither."""
    return declared(folder) or _by_text(folder)


def declared(folder: Path) -> str | None:
    """What the card's header says; None where it says nothing that the hub would take."""
    value = header_of(folder).get("license")
    return value if isinstance(value, str) and _SPELLED.fullmatch(value) else None


def header_of(folder: Path) -> dict[str, object]:
    """The YAML header of a folder's card; empty where there is none that can be read."""
    if not is_plain(folder / CARD, folder):
        return {}
    with (folder / CARD).open("rb") as file:
        begin = file.read(HEADER_BYTES).decode("utf-8", errors="replace")
    found = re.match(r"---\r?\n(.*?)\n---\s", begin, re.DOTALL)
    try:
        header = yaml.safe_load(found[1]) if found and not _ANCHOR.search(found[1]) else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def _by_text(folder: Path) -> str | None:
    for path in sorted(folder.iterdir()):
        if path.name.lower().startswith(("license", "licence")) and is_plain(path, folder):
            with path.open("rb") as file:
                head = " ".join(file.read(400).decode("utf-8", errors="replace").lower().split())
            return next((name for text, name in _LICENSES.items() if text in head), "other")
    return None
