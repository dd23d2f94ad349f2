"""Writes docs/schema/*.json, the JSON schemas of what Secateur writes, from the types.

python scripts/json_schemas.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

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
    for name, schema in schemas().items():
        file, text = FOLDER / name, json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
        if "--check" not in sys.argv[1:]:
            FOLDER.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
        elif not file.is_file() or file.read_text(encoding="utf-8") != text:
            sys.exit(f"docs/schema/{name}: the types have changed; run python scripts/json_schemas.py")


if __name__ == "__main__":
    main()
