"""The round-trip gate without its fresh interpreter, which costs more than most runs that it ends."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from secateur.model.round_trip import check
from secateur.report.terminal.listening import listening
from secateur.system.child import Ended


def run_here(arguments: Sequence[str], changes: Mapping[str, str] | None = None) -> Ended:
    """Stands in for `run` in `model.round_trip`: the same comparison in this process, and the same verdict on it."""
    folder, probe, bound, source = arguments[arguments.index("secateur.model.round_trip") + 1 :]
    try:
        with listening(None):
            found = check(Path(folder), Path(probe), int(bound) if bound else None, Path(source) if source else None)
    except Exception as error:
        return Ended(1, "", f"{type(error).__name__}: {error}")
    return Ended(0, json.dumps(found), "")
