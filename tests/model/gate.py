"""The round-trip gate without its fresh interpreter, which costs more than most runs that it ends."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from secateur.model.round_trip import check


class InThisProcess:
    """Stands in for `subprocess` in `model.round_trip`: the same comparison here, and the same verdict on it."""

    @staticmethod
    def run(command: list[str], **_: Any) -> CompletedProcess[str]:
        folder, probe, bound, source = command[command.index("secateur.model.round_trip") + 1 :]
        try:
            found = check(Path(folder), Path(probe), int(bound) if bound else None, Path(source) if source else None)
        except Exception as error:
            return CompletedProcess(command, 1, "", f"{type(error).__name__}: {error}")
        return CompletedProcess(command, 0, json.dumps(found), "")
