"""The files of a run beside its checkpoint."""

from __future__ import annotations

import json
import shutil

from secateur.config.plan import Plan
from secateur.evaluation.loading import load_tokenizer
from secateur.export.export import write_export_card
from secateur.model.licence import licence_of
from secateur.pipeline.inputs import Inputs
from secateur.pipeline.result import PassResult
from secateur.pipeline.results.evidence import EVIDENCE, evidence_json, evidence_record
from secateur.report import model_card
from secateur.report.html import page
from secateur.report.schema.evidence import Evidence
from secateur.report.schema.report import Report
from secateur.workspace.folder import EVENTS, MARK, Workspace
from secateur.workspace.ownership import EXPORT, names_for_report


def make_evidence(inputs: Inputs, result: PassResult) -> Evidence | None:
    """Why the removed units went; None where no unit did, or where it wasn't asked for."""
    cuts = [cut for cut in result.unit_cuts if cut.evidence is not None]
    if not cuts:
        return None
    tokenizer = load_tokenizer(inputs.checkpoint.path)
    return evidence_record(cuts, inputs.calibration.tokens, tokenizer, inputs.recipe.refit)


def write_outputs(
    report: Report, plan: Plan, inputs: Inputs, workspace: Workspace, evidence: Evidence | None
) -> None:
    """events.jsonl, plan.json, recipe.yaml, evidence.json, README.md, report.html, and report.json last of all."""
    folder = workspace.final
    if evidence is not None:
        (folder / EVIDENCE).write_text(evidence_json(evidence), encoding="utf-8")
    shutil.copyfile(workspace.work / EVENTS, folder / EVENTS)
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    (folder / "recipe.yaml").write_text(inputs.recipe.to_yaml(), encoding="utf-8")
    card = model_card.model_card(report, licence_of(inputs.checkpoint.path))
    (folder / "README.md").write_text(card, encoding="utf-8")
    page.write(report, folder, evidence)
    exported = report.get("export")
    if exported is not None:
        write_export_card(folder / EXPORT, folder, exported)
    report["files"] = names_for_report(folder)
    (folder / MARK).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
