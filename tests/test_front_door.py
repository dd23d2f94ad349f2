"""`import secateur`: light, complete, and kind to old names."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import secateur

STUB = Path(secateur.__file__).with_suffix(".pyi")


def test_every_name_of_the_stub_is_the_object_that_it_says() -> None:
    names = set()
    for node in ast.parse(STUB.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name, "type checkers need `name as name`, and lazy_loader knows no other"
                module = importlib.import_module(f"secateur.{node.module}")
                assert getattr(secateur, alias.name) is getattr(module, alias.name)
                names.add(alias.name)
    assert set(secateur.__all__) == names | {"__version__"}
    assert set(dir(secateur)) >= names


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="prunes"):
        _ = secateur.prunes
    assert not hasattr(secateur, "prunes")


def test_an_old_name_works_and_says_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(secateur._RENAMED, "Sparsity", "Pattern")
    with pytest.warns(DeprecationWarning, match=r"secateur\.Sparsity is now secateur\.Pattern") as caught:
        assert secateur.Sparsity is secateur.Pattern
    assert caught[0].filename == __file__


def test_old_names_lead_to_public_ones() -> None:
    assert set(secateur._RENAMED.values()) <= set(secateur.__all__)
    assert not set(secateur._RENAMED) & set(secateur.__all__)


def test_importing_it_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, secateur; secateur.__all__; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
