"""Writes docs/schema/*.json, the JSON schemas of what Secateur writes, from the types.

python scripts/json_schemas.py [--check]
"""

from __future__ import annotations

import json
from pathlib import Path

from _pages import keep
from pydantic import TypeAdapter

from secateur.config.plan import VERSION as PLAN_VERSION
from secateur.config.plan import PlanFile
from secateur.report.schema.report import VERSION as REPORT_VERSION
from secateur.report.schema.report import Report

FOLDER = Path(__file__).parents[1] / "docs" / "schema"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, dict[str, object]]:
    """File name -> schema."""
    found = {
        f"plan.v{PLAN_VERSION}.json": TypeAdapter(PlanFile).json_schema(),
        f"report.v{REPORT_VERSION}.json": TypeAdapter(Report).json_schema(),
    }
    return {name: {"$schema": DIALECT, **schema} for name, schema in found.items()}


def main() -> None:
    texts = {FOLDER / name: json.dumps(one, indent=1, ensure_ascii=False) + "\n" for name, one in schemas().items()}
    keep(texts, "the types have changed; run python scripts/json_schemas.py")


if __name__ == "__main__":
    main()
