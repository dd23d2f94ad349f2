"""The shape of the package, held by reading its source: who may import whom, and how big a file may get.

docs/architecture.md says why. A new room has its place in `ROOMS`.
"""

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

# From the bottom up: a room imports from itself and from those before it, never from one after it.
ROOMS = (
    "errors",
    "heap",
    "units",
    "distributed",
    "progress",
    "data",
    "numerics",
    "methods",
    "model",
    "workspace",
    "kernels",
    "runtime",
    "journal",
    "plan",
    "presets",
    "spelling",
    "recovery_settings",
    "settings",
    "recipe",
    "schedule",
    "calibration",
    "allocation",
    "reconstruct",
    "cut",
    "evaluation",
    "anatomy",
    "report",
    "reasons",
    "benchmarking",
    "api",
    "budget",
    "lineage",
    "run",
    "inventory",
    "proof",
    "summary",
    "recovery",
    "choice",
    "hidden",
    "one_shot",
    "gradual",
    "pipeline",
    "study",
    "cli_options",
    "cli_study",
    "cli_recover",
    "cli_prune",
    "cli_runtime",
    "cli",
    "__main__",
)
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


def room_of(file: Path) -> str:
    """The folder under the package, or the file's own name where it lies at the top."""
    return file.relative_to(SOURCE).with_suffix("").parts[0]


def label(file: Path) -> str:
    return file.relative_to(SOURCE).as_posix()


def test_every_room_has_its_place() -> None:
    assert {room_of(file) for file in FILES} - {"__init__"} == set(ROOMS)


@pytest.mark.parametrize("file", FILES, ids=label)
def test_nothing_imports_upwards(file: Path) -> None:
    if file == SOURCE / "__init__.py":
        return  # the public names: it imports on first use, and only to hand on
    own = ROOMS.index(room_of(file))
    for found in imports(file):
        if not found.module.startswith("secateur.") or found.types_only:
            continue
        other = found.module.split(".")[1]
        assert ROOMS.index(other) <= own, f"{label(file)}:{found.line} imports {found.module}, a room above its own"


@pytest.mark.parametrize("file", FILES, ids=label)
def test_the_package_itself_is_imported_for_its_version_only(file: Path) -> None:
    """`secateur.something` from inside the package would go around the order of the rooms."""
    if any(found.module == "secateur" for found in imports(file)):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "secateur"
        }
        assert used == {"__version__"}


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
        assert found.module.partition(".")[0] in {"torch", "transformers"}


def test_the_command_line_is_imported_by_nobody() -> None:
    importers = {label(file) for file in FILES for found in imports(file) if found.module == "secateur.cli"}
    assert importers == {"__main__.py"}


@pytest.mark.parametrize("file", FILES, ids=label)
def test_files_stay_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LINES


@pytest.mark.parametrize("file", FILES, ids=label)
def test_nothing_that_can_run_code_is_read(file: Path) -> None:
    assert not any(found.module.split(".")[0] in {"pickle", "dill", "joblib", "shelve"} for found in imports(file))
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"torch.load", "torch.save", "eval", "exec", "yaml.unsafe_load"}


@pytest.mark.parametrize("name", [name for name in secateur.__all__ if name != "__version__"])
def test_public_names_say_what_they_are(name: str) -> None:
    """Not by a docstring that Python made up: that of a dataclass without one starts with its signature."""
    found = getattr(secateur, name)
    if inspect.isroutine(found) or inspect.isclass(found):
        written = inspect.getdoc(found) or ""
        assert len(written.split()) >= 4
        assert not written.startswith(f"{found.__name__}(")
