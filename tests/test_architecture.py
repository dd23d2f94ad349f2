"""The shape of the package, held by reading its source. Who may import whom is a contract in pyproject.toml."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import secateur

SOURCE = Path(secateur.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

LINES = 300


class Import(NamedTuple):
    """One import statement's module, and whether only type checkers follow it."""

    module: str
    line: int
    types_only: bool


def imports(file: Path) -> Iterator[Import]:
    """Every import of a file, those inside functions too. `from a import b` counts as a.b where b is a module."""

    def visit(node: ast.AST, types_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, types_only) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file.name}:{child.lineno} imports relatively"
                for alias in child.names:
                    inner = f"{child.module}.{alias.name}"
                    yield Import(inner if is_ours(inner) else str(child.module), child.lineno, types_only)
            typing = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            yield from visit(child, types_only or typing)

    return visit(ast.parse(file.read_text(encoding="utf-8")), False)


def is_ours(module: str) -> bool:
    path = SOURCE.parent / module.replace(".", "/")
    return module.startswith("secateur") and (path.with_suffix(".py").is_file() or path.is_dir())


def label(file: Path) -> str:
    return file.relative_to(SOURCE).as_posix()


def test_the_package_itself_is_imported_by_nobody() -> None:
    """`secateur.something` from inside the package would go around the order of the rooms."""
    assert not [label(file) for file in FILES if any(found.module == "secateur" for found in imports(file))]


@pytest.mark.parametrize("room", ["methods", "numerics"])
def test_mathematics_knows_torch_and_nothing_of_models(room: str) -> None:
    allowed = ("secateur.methods", "secateur.numerics", "secateur.errors")
    for file in (SOURCE / room).rglob("*.py"):
        for found in imports(file):
            top = found.module.partition(".")[0]
            fine = top == "torch" or top in sys.stdlib_module_names or found.module.startswith(allowed)
            assert fine, f"{label(file)}:{found.line} imports {found.module}"


def test_the_bundled_modelling_file_stands_alone() -> None:
    """It's copied into checkpoints, where Secateur needn't be installed."""
    for found in imports(SOURCE / "model" / "modeling_secateur.py"):
        assert found.module.partition(".")[0] in {"torch", "transformers", *sys.stdlib_module_names}


def test_the_command_line_is_imported_by_nobody() -> None:
    importers = {label(file) for file in FILES for found in imports(file) if found.module == "secateur.cli.app"}
    assert importers <= {"__main__.py", "cli/app.py"}


def test_files_stay_short() -> None:
    lengths = {label(file): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > LINES} == {}


def test_nothing_that_can_run_code_is_read() -> None:
    for file in FILES:
        assert not any(
            found.module.split(".")[0] in {"pickle", "dill", "joblib", "shelve"} for found in imports(file)
        )
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                assert call not in {"torch.load", "torch.save", "eval", "exec", "yaml.unsafe_load"}, label(file)


def test_public_names_say_what_they_are() -> None:
    """Not by a docstring that Python made up: that of a dataclass without one starts with its signature."""
    for name in secateur.__all__:
        found = getattr(secateur, name)
        if inspect.isroutine(found) or inspect.isclass(found):
            written = inspect.getdoc(found) or ""
            assert len(written.split()) >= 4, name
            assert not written.startswith(f"{found.__name__}("), name
