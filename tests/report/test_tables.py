"""Tables at the widths of terminals: what they say is whole, and what there's no room for goes by columns."""

from __future__ import annotations

import io

import pytest
from rich.text import Text

from secateur.report.terminal.console import Console
from secateur.report.terminal.run import print_report
from secateur.report.terminal.table import Column, Table
from secateur.report.terminal.tables import print_methods
from tests.report import fixtures

WIDTHS = (80, 100, 120, 200)


def printed(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, color_system=None, markup=False, highlight=False)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(table: Table, width: int) -> str:
    console = printed(width)
    console.print(table)
    return text_of(console)


def rows() -> list[dict[str, object]]:
    """As `secateur methods` gives them."""
    from secateur.methods import METHODS

    facts = ((name, METHODS.facts(name)) for name in METHODS)
    return [
        {"name": name, "title": m.title, "prunes": sorted(m.prunes), "needs": sorted(m.needs), "paper": m.paper}
        for name, m in facts
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_methods_are_all_there_at_any_width(width: int) -> None:
    console = printed(width)
    print_methods(rows(), {"weights": "alps", "units": "obs"}, console)
    lines = text_of(console).splitlines()
    assert all(len(line) <= width for line in lines)
    first = [line.split()[0] for line in lines if line and not line.startswith((" ", "─"))]
    for row in rows():
        assert first.count(row["name"]) == len(row["prunes"])  # type: ignore[arg-type]  # once for each thing it prunes
    [alps] = [line for line in lines if line.startswith("alps ")]
    assert "2406.07831" in alps
    assert "(default)" in " ".join(text_of(console).split("magnitude")[0].split())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", fixtures.ALL)
def test_a_report_keeps_its_figures_at_any_width(name: str, width: int) -> None:
    report = fixtures.ALL[name]()
    wide, narrow = printed(1000), printed(width)
    print_report(report, "out", wide)
    print_report(report, "out", narrow)
    for line in text_of(wide).splitlines():
        words = line.split()
        if len(words) >= 4 and words[0] in {"Perplexity", "Parameters"}:
            assert any(other.split()[:4] == words[:4] for other in text_of(narrow).splitlines())


def test_the_least_important_columns_go_first() -> None:
    table = Table("name", Column("most", drop=1), Column("least", drop=2), Column("figure", right=True))
    table.add_row("a" * 10, "b" * 10, "c" * 10, "1.5")
    assert [word in shown(table, 80) for word in ("most", "least", "figure")] == [True, True, True]
    assert [word in shown(table, 36) for word in ("most", "least", "figure")] == [True, False, True]
    assert [word in shown(table, 24) for word in ("most", "least", "figure")] == [False, False, True]


def test_nothing_is_cut_where_nothing_may_go() -> None:
    table = Table("name", Column("figure", right=True))
    table.add_row("a" * 30, Text("1.25", "green"))
    assert shown(table, 20).count("a") == 30 + 1  # with that of the header


def test_prose_takes_several_lines_and_the_rest_one() -> None:
    table = Table("name", Column("what", wraps=10), Column("n", right=True))
    table.add_row("short", "some words that take a few lines", "12")
    lines = shown(table, 26).splitlines()
    assert len(lines) > 3
    assert lines[2].split()[0] == "short"
    assert lines[2].split()[-1] == "12"


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells for 1 columns"):
        Table("name").add_row("a", "b")
