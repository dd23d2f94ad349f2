"""A model, a text and a sweep that takes a second or two."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.small import save_tiny


def furnish(folder: Path) -> dict[str, Any]:
    """Writes a model and text into a folder; gives the base of a sweep of them."""
    model = save_tiny(folder / "model", context=512)
    texts = (f"The {n}th thing that they said was that there is nothing there, {n * n}. " * 6 for n in range(100))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "text.jsonl").write_text(lines, encoding="utf-8")
    settings = {"sites": "channel", "method": "obs", "samples": 4, "length": 32, "speed": False, "explain": False}
    return {"model": str(model), "calibrate": str(folder / "text.jsonl"), **settings}


def figures(found: Any) -> Any:
    """What a sweep has come to, without where it lies."""
    comparison = {**found["comparison"]}
    comparison["results"] = [{**result, "source": ""} for result in comparison["results"]]
    return comparison


def kill_in_the_middle(out: Path, name: str, patience: float = 60) -> None:
    """Kills the process of a trial as soon as a block of it is finished."""
    journal, begin = out / name / ".secateur" / "journal.jsonl", time.monotonic()
    while time.monotonic() - begin < patience:
        if journal.is_file() and '\n{"block"' in journal.read_text(encoding="utf-8"):
            line = (out / ".secateur" / "starts" / name).read_text(encoding="utf-8").splitlines()[0]
            os.kill(json.loads(line)["pid"], signal.SIGKILL)
            return
        time.sleep(0.002)
