"""The pages say what the code does: their commands parse, their snippets run, their tables are complete."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import typer
import yaml

import secateur
from secateur.cli import app as cli
from secateur.config.presets import PRESETS
from secateur.config.recipe import Recipe
from secateur.config.sweep import Resources
from secateur.config.training import Recovery
from secateur.methods import METHODS, Method
from secateur.sweeps.trial import run_trial
from tests.cases import case
from tests.small import save_tiny

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def rows(text: str) -> list[list[str]]:
    """The cells of every row of every table, without their padding."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def row(text: str, first: str) -> list[str]:
    """The row that starts with this cell."""
    return next(cells for cells in rows(text) if cells[0] == first)


def words(cell: str) -> set[str]:
    return set() if cell == "nothing" else set(cell.replace("`", "").split(", "))


def furnish(folder: Path) -> None:
    """What the pages name: a model and text."""
    save_tiny(folder / "path" / "to" / "model", context=512)
    texts = (f"The {n}th thing that they said was that there is nothing there, {n * n}. " * 6 for n in range(300))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "general.jsonl").write_text(lines, encoding="utf-8")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the pages name."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Ran(NamedTuple):
    """Where a page's snippets have run, and what they have left."""

    folder: Path
    names: dict[str, Any]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """All of docs/python-api.md, in order and in one namespace, as a reader would."""
    folder = tmp_path_factory.mktemp("api")
    furnish(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(
            "secateur.sweeps.sweep.in_own_process", run_trial
        )  # fresh processes take longer than the trials
        return Ran(folder, run("docs/python-api.md"))


def run(name: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "snippet"}
    for block in blocks(page(name), "python"):
        exec(compile(block, f"a snippet of {name}", "exec"), names)
    return names


def commands() -> Iterator[list[str]]:
    """Every command line of Secateur that a page shows, as its words."""
    for file in [*PAGES, *sorted((ROOT / "recipes").glob("*.yaml"))]:
        text = file.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            shown = line.removeprefix("#").strip().strip("`")
            if shown.startswith("secateur ") and (line.startswith((" ", "#", "secateur "))):
                yield shlex.split(shown, comments=True)[1:]


def test_commands_parse() -> None:
    """By the real parser, which stops before anything is run: unknown flags and missing arguments are errors."""
    group: Any = typer.main.get_command(cli.app)
    lines = list(commands())
    assert len(lines) > 20
    for line in lines:
        if line[0].startswith("-"):
            group.make_context("secateur", [line[0], "inspect"], resilient_parsing=False)
        else:
            group.commands[line[0]].make_context(line[0], line[1:])


def test_links_lead_somewhere() -> None:
    for file in PAGES:
        check_links(file)


def check_links(file: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        other = (file.parent / path).resolve() if path else file
        assert other.exists(), f"{file.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {slug(title) for title in titles}, f"{file.name} links to {target}"


def slug(title: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_the_readme_runs(desk: Path) -> None:
    save_tiny(desk / "out" / "small")  # as if its commands had run
    run("README.md")
    assert (desk / "out" / "mine" / "model.safetensors").is_file()


def test_the_api_page_runs(api: Ran) -> None:
    assert api.names["report"]["sites"]
    assert {path.name for path in (api.folder / "out").iterdir()} == {
        "small",
        "swept",
        "recovered",
        "forecast",
        "mine",
        "narrow",
        "found",
    }


def keys(value: Any) -> set[str]:
    """Every key of a JSON value, but those that are data themselves (a text's name, a layer's number)."""
    if isinstance(value, list):
        return {key for item in value for key in keys(item)}
    if not isinstance(value, dict):
        return set()
    return {key for key in value if re.fullmatch(r"[a-z_]+", key)} | {
        key for name, item in value.items() if name not in {"recipe", "told"} for key in keys(item)
    }


def test_every_key_that_is_written_is_described(api: Ran) -> None:
    out = api.folder / "out" / "small"
    found = keys(json.loads((out / "report.json").read_text(encoding="utf-8")))
    found |= keys(json.loads((out / "plan.json").read_text(encoding="utf-8")))
    found |= keys([json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()])
    found |= keys(api.names["figures"])
    text = page("docs/file-formats.md")
    assert not {key for key in found if f"`{key}`" not in text and f'"{key}"' not in text}


def spelled(name: str) -> str:
    """A function as a reader would write its head; defaults that have no short spelling are `...`."""
    signature = inspect.signature(getattr(secateur, name))
    parts: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        default = parameter.default
        shown = "" if default is parameter.empty else f" = {'...' if callable(default) else repr(default)}"
        parts.append(f"{parameter.name}: {parameter.annotation}{shown}")
    return f"{name}({', '.join(parts)}) -> {signature.return_annotation}"


def test_every_public_name_has_its_place_and_its_signature() -> None:
    text = page("docs/python-api.md")
    shown = {" ".join(block.split()) for block in blocks(text, "text")}
    for name in secateur.__all__:
        if name == "__version__":
            continue
        assert f"### `{name}`\n" in text, f"docs/python-api.md lacks {name}"
        if inspect.isroutine(getattr(secateur, name)):
            assert spelled(name) in shown, f"docs/python-api.md should say\n{spelled(name)}"


def test_every_method_has_its_row() -> None:
    for name, method in METHODS.items():
        with case(name):
            is_told(name, method)


def is_told(name: str, method: Method) -> None:
    _, prunes, formula, gathers, cost, wins = row(page("docs/methods.md"), f"`{name}`")
    assert words(prunes) == method.prunes
    assert words(gathers) == method.needs
    assert f"]({method.paper})" in formula
    assert cost
    assert wins


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_its_row(name: str) -> None:
    preset = PRESETS[name]
    cells = row(page("docs/methods.md"), f"`{name}`")[1:]
    steps = f"{preset.reconstruct} steps a block" if preset.reconstruct else "none"
    assert cells == [
        f"`{preset.weights}`",
        f"`{preset.target}`",
        "yes" if preset.sequential else "no",
        steps,
        preset.masks,
    ]


@pytest.mark.parametrize("pattern", ["free", "2:4"])
def test_the_example_method_works_by_name(pattern: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("secateur.methods.ria")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(blocks(page("docs/adding-a-method.md"), "python")[0], "ria.py", "exec"), module.__dict__)
    monkeypatch.setitem(METHODS, module.METHOD.name, module.METHOD)
    W, x = torch.randn(5, 7), torch.randn(40, 7)
    moments = secateur.Moments(7, module.METHOD.needs)
    moments.update(x)
    size = W.abs()
    for i, j in [(0, 0), (4, 6), (2, 3)]:
        share = size[i, j] / size[i].sum() + size[i, j] / size[:, j].sum()
        expected = share * x[:, j].square().mean().sqrt().sqrt()
        torch.testing.assert_close(module.score(W, moments)[i, j], expected)
    values = {"model": "path/to/model", "method": "ria", "calibrate": "general.jsonl", "length": 64, "samples": 8}
    values |= {"sparsity": 0.5} if pattern == "free" else {"pattern": pattern}
    report = secateur.prune(secateur.make_recipe(values), "out/ria", dry_run=True, quiet=True)
    assert {site["method"] for site in report["sites"]} == {"ria"}
    assert {site["sparsity"] for site in report["sites"]} == {0.5}


RECIPES = [file for file in sorted((ROOT / "recipes").glob("*.yaml")) if file.stem != "sweep"]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_ready_recipes_are_valid_and_listed(file: Path) -> None:
    read = secateur.load_search if "\nwant:" in file.read_text(encoding="utf-8") else secateur.load_recipe
    recipe = read(file, {"model": "path/to/model"})
    assert f"[`{file.name}`](../recipes/{file.name})" in page("docs/recipes.md")
    assert f"--recipe recipes/{file.name} --out out/{file.stem}" in file.read_text(encoding="utf-8")
    assert recipe.calibrate == "stdlib"  # whoever has better text gives it as a flag


def test_the_ready_sweep_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, but on a model that takes no time."""
    file = ROOT / "recipes" / "sweep.yaml"
    assert f"secateur sweep recipes/{file.name} --out out/{file.stem}" in file.read_text(encoding="utf-8")
    assert f"[`{file.name}`](../recipes/{file.name})" in page("docs/recipes.md")
    told = yaml.safe_load(file.read_text(encoding="utf-8"))
    model = save_tiny(desk / "five", num_hidden_layers=5)
    quick = {"model": str(model), "samples": 4, "length": 32, "calibrate": "general.jsonl", "evaluate": "none"}
    monkeypatch.setattr("secateur.sweeps.sweep.in_own_process", run_trial)
    found = secateur.sweep(secateur.make_sweep({**told, "base": {**told["base"], **quick}}), "out/sweep", quiet=True)
    assert [(trial["name"], trial["error"]) for trial in found["trials"]] == [
        (trial.name, None) for trial in secateur.load_sweep(file).trials
    ]
    names = {*keys({**found, "comparison": None}), "host", "pid"} - {"sparsity", "method", "sites"}
    assert not {key for key in names if f"`{key}`" not in page("docs/file-formats.md")}


def test_the_sweep_page_says_what_a_sweep_takes(desk: Path) -> None:
    text = page("docs/sweep.md")
    shown = secateur.make_sweep(yaml.safe_load(blocks(text, "yaml")[0]))
    assert len(shown.trials) == 9
    assert f"`{shown.trials[0].name}`" in text
    for name, field in Resources.model_fields.items():
        assert row(text, f"`{name}`")[1].startswith(str(field.description))


def test_the_table_of_settings_is_the_schema() -> None:
    expected = [["key", "default", "meaning"], ["---", "---", "---"]]
    for name, field in Recipe.model_fields.items():
        default = field.get_default()
        plain = list(default) if isinstance(default, tuple) else default
        shown = "required" if field.is_required() else "unset" if plain in (None, []) else f"`{yaml_of(plain)}`"
        expected.append([f"`{name}`", shown, str(field.description)])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in expected)
    assert table in page("docs/recipes.md"), f"docs/recipes.md should have\n{table}"


def test_the_table_of_recovery_settings_is_the_schema() -> None:
    expected = [["key", "default", "meaning"], ["---", "---", "---"]]
    for name, field in Recovery.model_fields.items():
        default = field.get_default()
        shown = "unset" if default is None else f"`{yaml_of(default)}`"
        expected.append([f"`{name}`", shown, str(field.description)])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in expected)
    assert table in page("docs/recovery.md"), f"docs/recovery.md should have\n{table}"


def test_a_recovery_takes_every_setting_as_a_flag() -> None:
    command: Any = typer.main.get_command(cli.app)
    flags = {parameter.name for parameter in command.commands["recover"].params}
    assert set(Recovery.model_fields) <= flags


def yaml_of(value: Any) -> str:
    """As it stands in a recipe."""
    return json.dumps(value).replace('"', "")


def test_the_source_tree_is_as_it_is_shown() -> None:
    """`python scripts/source_tree.py` writes it."""
    subprocess.run([sys.executable, ROOT / "scripts" / "source_tree.py", "--check"], check=True)


def test_pages_name_no_machine() -> None:
    for file in PAGES:
        with case(file.name):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/|\.\./shared", text)
