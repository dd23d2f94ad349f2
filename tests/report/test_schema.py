"""Reports of real runs are what their types say, no key more and none less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from json_schemas import FOLDER, schemas
from pydantic import ConfigDict, TypeAdapter

import secateur
from secateur.config.plan import PlanFile
from secateur.config.training import make_recovery
from secateur.pipeline.results.evidence import EVIDENCE
from secateur.recovery.recover import recover
from secateur.report.schema.evidence import Evidence, Explanation
from secateur.report.schema.model import Inspected
from secateur.report.schema.report import VERSION, Report
from tests.small import TRAINING_LENGTH, save_tiny

TRAINING = {"steps": 2, "batch": 2, "length": TRAINING_LENGTH, "rank": 2, "learning_rate": 1e-3}


def check(kind: Any, found: object) -> None:
    """Validates what JSON makes of `found`; in a list, as a setting of the adapter doesn't reach a bare TypedDict."""
    adapter = TypeAdapter(list[kind], config=ConfigDict(extra="forbid", strict=True))
    adapter.validate_json(json.dumps([found]))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schema")
    text = [json.dumps({"text": f"the {n}th of {7 * n} things, and {n * n} more of them: " * 3}) for n in range(60)]
    (folder / "text.jsonl").write_text("\n".join(text), encoding="utf-8")
    return save_tiny(folder / "model", num_hidden_layers=3, context=64)


def pruned(model: Path, out: Path, dry_run: bool = False, **told: Any) -> Report:
    about = {"model": model, "calibrate": model.parent / "text.jsonl", "samples": 4, "length": TRAINING_LENGTH}
    quick = {"speed": False, "allow_little_text": True}
    recipe = secateur.make_recipe({**about, **quick, **told})
    return secateur.prune(recipe, out, quiet=True, dry_run=dry_run)


def test_a_run_and_what_is_read_from_it(model: Path, tmp_path: Path) -> None:
    cuts = {"sites": "channel,weight,layer", "sparsity": "channel:0.25,weight:0.5,layer:0.34", "reconstruct": 2}
    report = pruned(model, tmp_path / "out", **cuts)
    assert next(iter(report)) == "version"
    assert report["version"] == VERSION
    assert report["evaluation"] is not None
    check(Report, report)
    for name, kind in (("report.json", Report), ("plan.json", PlanFile), (EVIDENCE, Evidence)):
        check(kind, json.loads((tmp_path / "out" / name).read_text(encoding="utf-8")))
    cut = next(site for site in report["sites"] if site["kind"] == "channel" and site["layer"] is not None)
    for unit in (0, 1, 2):
        check(Explanation, secateur.explain(tmp_path / "out", layer=cut["layer"], site="channel", unit=unit))
    check(Inspected, secateur.inspect(tmp_path / "out"))


def test_a_gradual_run_with_recovery(model: Path, tmp_path: Path) -> None:
    cuts = {"sites": "channel", "sparsity": 0.5, "steps": 2}
    report = pruned(model, tmp_path / "out", **cuts, recover={"how": "lora", **TRAINING})
    assert len(report["recovery"]["states"]) == 3
    assert len(report["steps"]) == 3
    check(Report, report)
    again = recover(
        tmp_path / "out",
        tmp_path / "again",
        make_recovery({"how": "full", "data": str(model.parent / "text.jsonl"), "loss": "lm", **TRAINING}),
        evaluate="none",
        quiet=True,
    )
    assert next(iter(again)) == "version"
    check(Report, again)


def test_a_dry_run(model: Path, tmp_path: Path) -> None:
    report = pruned(model, tmp_path / "out", dry_run=True, sites="query_head", sparsity=0.5)
    assert report["not_evaluated"]
    check(Report, report)


def test_the_schemas_in_docs_are_of_these_types() -> None:
    for name, schema in schemas().items():
        assert json.loads((FOLDER / name).read_text(encoding="utf-8")) == schema
