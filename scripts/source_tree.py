"""Writes the source tree into docs/architecture.md: every file with the first sentence of its docstring.

python scripts/source_tree.py [--check]
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from _pages import keep

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- source tree: begin -->\n", "<!-- source tree: end -->\n"


def first_sentence(file: Path) -> str:
    """What the file's docstring opens with, up to its first colon; empty if it has none."""
    text = " ".join((ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())
    return re.split(r"\.(?: |$)|: (?=[a-z`'(])|; ", text)[0]


def tree(folder: Path, depth: int = 1) -> list[str]:
    """Lines for the files of a folder, then for the folders in it."""
    lines = []
    for file in sorted(folder.glob("*.py")):
        said = first_sentence(file)
        if file.name == "__init__.py" and not said:
            continue
        lines.append(f"{'  ' * depth}{file.name:<26}{said}".rstrip())
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and any(path.rglob("*.py"))):
        lines += [f"{'  ' * depth}{inner.name}/", *tree(inner, depth + 1)]
    return lines


def page() -> str:
    """docs/architecture.md with the tree as it is now."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    body = "\n".join(["src/secateur/", *tree(ROOT / "src" / "secateur")])
    return f"{before}{BEGIN}```text\n{body}\n```\n{END}{rest.split(END)[1]}"


def main() -> None:
    keep({PAGE: page()}, "the source tree has changed; run python scripts/source_tree.py")


if __name__ == "__main__":
    main()
