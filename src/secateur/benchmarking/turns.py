"""The forms of a model, each in a process of its own, in turns: what else the machine does hits all alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from secateur.benchmarking.worker import MARK, SEGMENTS
from secateur.evaluation.evaluation import bytes_on_disk
from secateur.report.schema.bench import BenchAnswer, BenchForm, BenchOrder, BenchSettings
from secateur.system.child import Child
from secateur.system.monitor import ProgressStep

_CHILD = "from secateur.benchmarking.worker import child; child()"
WAYS = {"eager": "eager", "compile": "torch.compile", "frozen": "torch.compile, frozen"}
PROCESS_BYTES, COPIES = 10**9, 3  # of an interpreter with torch; of the weights: as loaded, packed or frozen anew


@dataclass(frozen=True)
class Form:
    """What is measured.

    Args:
        side: `dense` (the model before it was pruned) or `model`.
        way: eager, compile or frozen.
        runtime: dense, or auto: compressed weights run compressed where that is faster.
    """

    side: str
    folder: Path
    way: str
    runtime: str = "dense"

    @property
    def name(self) -> str:
        what = "compressed" if self.runtime != "dense" else self.side
        return f"{what}, {WAYS[self.way]}"


def measure_forms(forms: Sequence[Form], settings: BenchSettings, step: ProgressStep) -> list[BenchForm]:
    """What was found of each form: together and in turns where all fit in memory, else one after the other."""
    need = sum(PROCESS_BYTES + COPIES * bytes_on_disk(form.folder) for form in forms)
    if need < psutil.virtual_memory().available:
        return _in_turns(forms, settings, step)
    return [found for form in forms for found in _in_turns([form], settings, step)]


def _in_turns(forms: Sequence[Form], settings: BenchSettings, step: ProgressStep) -> list[BenchForm]:
    with ExitStack() as stack:
        processes = [stack.enter_context(FormProcess(form, settings)) for form in forms]
        for process in processes:
            process.go_on()
            step(f"{process.name}: loaded")
        for batch in settings["batches"]:
            for _ in settings["contexts"]:
                for _ in range(SEGMENTS + 1):
                    for process in processes:
                        process.go_on()
                for process in processes:
                    step(f"{process.name}: batch {batch}")
        for process in processes:
            process.go_on()
            step(f"{process.name}: done")
        return [process.found for process in processes]


class FormProcess:
    """One form's process. It goes on piece by piece; what it says is collected in `found`, an error too."""

    def __init__(self, form: Form, settings: BenchSettings) -> None:
        order: BenchOrder = {**settings, "path": str(form.folder), "form": form.way, "runtime": form.runtime}
        self.name = form.name
        self.found: BenchForm = {
            "name": form.name,
            "side": form.side,
            "way": form.way,
            "rows": [],
            "bytes_on_disk": bytes_on_disk(form.folder),
        }
        self._begun = False
        threads = str(settings["threads"])
        changes = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        self._child = Child(_CHILD, order, MARK, changes)

    def __enter__(self) -> FormProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.__exit__()

    def go_on(self) -> None:
        """Waits for its next answer; the first one comes by itself."""
        if "error" in self.found:
            return
        answer = self._child.ask("next" if self._begun else "")
        self._begun = True
        if answer is None:
            code, said = self._child.last_words()
            self.found["error"] = f"{self.name} failed: {said or f'exit code {code}'}"
            return
        told: BenchAnswer = json.loads(answer)
        if "form" in told:
            self.found |= told["form"]
        if "error" in told:
            self.found["error"] = told["error"]
        if "row" in told:
            self.found["rows"].append(told["row"])
