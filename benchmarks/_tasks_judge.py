"""What became of each item of a task under a model, measured once for each model and kept, for `tasks.py`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secateur.evaluation.tasks.outcome import Outcome, figures_of
from secateur.numerics.paired import paired


@dataclass(frozen=True)
class Judge:
    """Tasks and how they are measured; `work` is where the items are kept.

    limit    the first items of each task; None for all
    """

    work: Path
    dtype: str
    limit: int | None

    def items(self, model: Path, specs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """By task: the figure of each item in the metric that counts, that metric, and what a guess has of it."""
        kept = self.work / f"judged-{model.name}-{self.dtype}-{self.limit or 'all'}.json"
        found = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
        missing = [spec for spec in specs if Path(spec).name not in found]
        if missing:
            for outcome in self._measured(model, missing):
                found[Path(outcome.data).name] = {
                    "metric": outcome.metric,
                    "chance": outcome.chance,
                    "values": list(outcome.items[outcome.metric]),
                }
            kept.write_text(json.dumps(found), encoding="utf-8")
        return {Path(spec).name: found[Path(spec).name] for spec in specs}

    def _measured(self, model: Path, specs: list[str]) -> list[Outcome]:
        from secateur.evaluation.tasks.run import ask, measure, opened

        asked = ask(",".join(specs), self.limit)
        return list(measure(opened(model, asked, "cpu", self.dtype), asked)[1].values())

    def compared(self, before: Path, after: Path, specs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """By task: both values with their errors, the paired difference, chance, the number of items."""
        old, new = self.items(before, specs), self.items(after, specs)
        found = {}
        for name, own in old.items():
            values, other = own["values"], new[name]["values"]
            sides = {"before": figures_of(own["metric"], values), "after": figures_of(own["metric"], other)}
            found[name.replace(".jsonl", "")] = {
                **sides,
                **asdict(paired(other, values)),
                "chance": own["chance"],
                "items": len(values),
            }
        return found
