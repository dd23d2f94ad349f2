"""The table of methods says what the methods do, and the mapping over it behaves as a dict that imports late."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur import methods
from secateur.methods import METHODS
from secateur.methods.index import INDEX, Facts
from secateur.methods.registry import Methods


def test_a_row_is_its_method() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert Facts(method.title, method.prunes, method.needs, method.paper) == INDEX[name] == METHODS.facts(name)


def test_every_file_with_a_method_has_a_row() -> None:
    files = Path(methods.__file__).parent.glob("*.py")
    assert {file.stem for file in files if "\nMETHOD = " in file.read_text(encoding="utf-8")} == set(INDEX)


def test_it_is_a_dict() -> None:
    own = Methods({"wanda": INDEX["wanda"]})
    mine = METHODS["ria"]._replace(name="mine")
    own["mine"] = mine
    assert list(own) == ["wanda", "mine"]
    assert len(own) == 2
    assert own["mine"] is mine
    assert own.facts("mine").title == mine.title
    assert own.able("units") == ["wanda"]
    assert dict(own.items()) == {"wanda": METHODS["wanda"], "mine": mine}
    own["wanda"] = mine  # one that stands in for a row
    assert own.able("units") == []
    assert list(own) == ["wanda", "mine"]
    del own["wanda"]
    assert "wanda" not in own
    for missing in (own.__getitem__, own.__delitem__, own.facts):
        with pytest.raises(KeyError):
            missing("wanda")


def test_what_the_package_gives_on_first_use() -> None:
    for name in methods.__all__:
        assert getattr(methods, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'METHDS'"):
        _ = methods.METHDS
