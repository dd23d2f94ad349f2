"""The one kind of table that is shown on a terminal: it fits, and what it says is never cut.

Where a terminal is too narrow, whole columns go, the least important first; names and figures keep every letter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import rich.console
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from secateur.report import numbers as fmt

Cell = str | Text | float | None  # numbers of one column are shown with one precision
GAP = 2  # columns of letters between two columns of a table


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        right: figures stand to the right.
        drop: the column with the highest goes first where there's no room; 0 never goes.
        wraps: prose, which may take several lines of at least so many letters; 0 is for what must stay whole.
    """

    name: str
    right: bool = False
    drop: int = 0
    wraps: int = 0


class Table:
    """Rows under a header and a rule; its columns are chosen when it's printed, by the width that there is."""

    def __init__(self, *columns: Column | str, header: bool = True) -> None:
        self._columns = [Column(column) if isinstance(column, str) else column for column in columns]
        self._header = header
        self._cells: list[tuple[Cell, ...]] = []
        self._rows: list[list[Text]] = []  # as they are shown

    def add_row(self, *cells: Cell) -> None:
        """Adds a row with a cell for each column."""
        if len(cells) != len(self._columns):
            raise ValueError(f"{len(cells)} cells for {len(self._columns)} columns")
        self._cells.append(cells)

    @property
    def row_count(self) -> int:
        return len(self._cells)

    def __rich_console__(
        self, console: rich.console.Console, options: rich.console.ConsoleOptions
    ) -> Iterator[RichTable]:
        self._rows = [list(row) for row in zip(*map(_column, zip(*self._cells, strict=True)), strict=True)]
        shown = self._fitting(options.max_width)
        whole = self._least(shown) <= options.max_width  # else lines are broken, as nothing may be cut
        table = RichTable(
            box=box.SIMPLE_HEAD if self._header else None,
            show_header=self._header,
            show_edge=False,
            pad_edge=False,
            padding=(0, GAP if not self._header else 1, 0, 0),
            header_style="dim",
        )
        for n in shown:
            column = self._columns[n]
            table.add_column(
                Text(column.name),
                justify="right" if column.right else "left",
                no_wrap=whole and not column.wraps,
                min_width=column.wraps or None,
                overflow="fold",
            )
        for row in self._rows:
            table.add_row(*(row[n] for n in shown))
        yield table

    def _fitting(self, width: int) -> list[int]:
        """The columns that fit, in order."""
        shown = list(range(len(self._columns)))
        while self._least(shown) > width:
            droppable = [n for n in shown if self._columns[n].drop]
            if not droppable:
                break
            shown.remove(max(droppable, key=lambda n: self._columns[n].drop))
        return shown

    def _least(self, shown: list[int]) -> int:
        """Letters that these columns need."""
        return sum(self._width(n) for n in shown) + GAP * max(0, len(shown) - 1)

    def _width(self, n: int) -> int:
        column = self._columns[n]
        longest = max((row[n].cell_len for row in self._rows), default=0)
        if column.wraps:
            longest = min(longest, column.wraps)
        return max(longest, Text(column.name).cell_len if self._header else 0)


def _column(cells: Sequence[Cell]) -> list[Text]:
    """The cells of a column as they are shown."""
    numbers = iter(fmt.numbers(cell for cell in cells if not isinstance(cell, str | Text)))
    shown = (cell if isinstance(cell, str | Text) else next(numbers) for cell in cells)
    return [Text(cell) if isinstance(cell, str) else cell for cell in shown]


def figures(first: str, *names: str) -> Table:
    """A table of labels and figures."""
    return Table(first, *(Column(name, right=True) for name in names))


def section(console: rich.console.Console, title: str | None, table: Table) -> None:
    """Prints a table under an empty line and its title."""
    console.print()
    if title is not None:
        console.print(title, style="bold")
    console.print(table)
