"""A table of numbers: rows, columns, and the cells where they meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from trimix_lm_eval.analysis.report.cells import Cell
from trimix_lm_eval.analysis.report.systems import TableRow

#: By task, metric and file of a run.
Cells = dict[tuple[str, str, str], Cell]


class Column(NamedTuple):
    """The head of a column.

    Attributes:
        title: Short.
        tasks: One task, or those of a mean.
        metric: Its name.
        higher_is_better: Which way is up.
        is_mean: Whether it is a mean.
    """

    title: str
    tasks: tuple[str, ...]
    metric: str
    higher_is_better: bool
    is_mean: bool


@dataclass(frozen=True)
class Table:
    """A table of numbers.

    Attributes:
        name: Of the group or tag; unique in a system.
        title: For people.
        note: What is missing.
        columns: The heads.
        rows: With a cell, or None, for each column.
    """

    name: str
    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[TableRow, tuple[Cell | None, ...]], ...]

    def best(self, column: int) -> list[Cell]:
        """The best of a column: oracles do not count, nor limited runs beside whole ones."""
        cells = [cells[column] for row, cells in self.rows if row.kind != "oracle"]
        there = [cell for cell in cells if cell is not None]
        whole = [cell for cell in there if not cell.reasons] or there
        top = max((cell.goodness for cell in whole), default=0.0)
        return [cell for cell in whole if cell.goodness == top] if len(whole) > 1 else []
