"""Writes docs/schema/*.json, the JSON schemas of what Secateur writes, from the types.

python scripts/json_schemas.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from secateur.report.schema import VERSION, Report

FOLDER = Path(__file__).parents[1] / "docs" / "schema"


def schemas() -> dict[str, Any]:
    """File name -> schema."""
    report = TypeAdapter(Report).json_schema()
    return {f"report.v{VERSION}.json": {"$schema": "https://json-schema.org/draft/2020-12/schema", **report}}


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
