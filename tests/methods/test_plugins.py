"""Methods of other packages, by their entry points."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import secateur
from secateur.errors import InputError
from secateur.methods import METHODS, plugins
from tests.small import save_tiny

EXAMPLE = Path(__file__).parents[1] / "example_package"
Install = Callable[[str, str, Path], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a package with one entry point where Python looks for packages, as pip would."""

    def put(name: str, target: str, source: Path) -> None:
        site = tmp_path / f"site-{name}"
        info = site / f"package_{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: package-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[secateur.methods]\n{name} = {target}\n")
        monkeypatch.syspath_prepend(str(source))
        monkeypatch.syspath_prepend(str(site))
        plugins.discover.cache_clear()

    yield put
    monkeypatch.undo()
    plugins.discover.cache_clear()
    plugins.load.cache_clear()


@pytest.mark.usefixtures("quick")
def test_the_example_package_prunes(tmp_path: Path, install: Install) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, target),) = project["entry-points"][plugins.GROUP].items()
    install(name, target, EXAMPLE)
    assert name in METHODS
    assert name in list(METHODS)
    assert "secateur_example" not in sys.modules, "found without being imported"
    save_tiny(tmp_path / "model", context=512)
    (tmp_path / "text.txt").write_text("one two three four five six seven eight nine ten. " * 60)
    recipe = secateur.make_recipe(
        {
            "model": str(tmp_path / "model"),
            "method": name,
            "sparsity": 0.5,
            "calibrate": str(tmp_path / "text.txt"),
            "samples": 2,
            "length": 32,
        }
    )
    secateur.prune(recipe, tmp_path / "out")
    assert name in (tmp_path / "out" / "plan.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("broken", "import no_such_library", "of package 'package-broken' can't be imported .*no_such_library"),
        ("wrong", "METHOD = 3", "is a int, it must be a secateur.Method"),
        ("other", "from secateur.methods.ria import METHOD", "calls itself 'ria'"),
        ("wanda", "from secateur.methods.wanda import METHOD", "'wanda' is built in, and package 'package-wanda'"),
        ("idle", "import secateur\nMETHOD = secateur.Method('idle', '', '')", "neither scores nor solves"),
    ],
)
def test_what_cannot_be_used_is_one_line(name: str, code: str, says: str, tmp_path: Path, install: Install) -> None:
    (tmp_path / f"plugin_{name}.py").write_text(code)
    install(name, f"plugin_{name}:METHOD", tmp_path)
    assert name in METHODS
    with pytest.raises(InputError, match=says) as error:
        _ = METHODS[name]
    assert "\n" not in str(error.value)
    assert METHODS["magnitude"].name == "magnitude"
