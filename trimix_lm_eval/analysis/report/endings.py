"""How generated texts ended: a task that scores 0 may have run into its length limit.

Runs of before this was recorded tell nothing of it and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from trimix_lm_eval.analysis.report.cells import Table
from trimix_lm_eval.analysis.report.systems import TableRow


class Ending(NamedTuple):
    """How the texts of one row on one task ended.

    Attributes:
        row: The row.
        column: What the table calls the task.
        task: Its name.
        counts: By ``finish_reason`` (``stop``, ``eos``, ``length``) the number of texts.
    """

    row: TableRow
    column: str
    task: str
    counts: dict[str, int]

    @property
    def length_share(self) -> float:
        """The share of the texts that were as long as was allowed."""
        return self.counts.get("length", 0) / sum(self.counts.values())


def endings(tables: Sequence[Table]) -> list[list[Ending]]:
    """By table, how the texts of each row and task ended; every task and filter is told of once.

    Args:
        tables: Of one system.
    """
    seen: set[tuple[str, str, str]] = set()
    return [list(_of_table(table, seen)) for table in tables]


def _of_table(table: Table, seen: set[tuple[str, str, str]]) -> Iterator[Ending]:
    for row, _ in table.rows:
        if row.kind == "oracle":  # each of its tasks is that of another row
            continue
        for column in table.columns:
            task = column.tasks[0]
            counts = row.runs[task].finish_reasons(task) if task in row.runs else {}
            told = row.key, task, column.filter
            if counts and not column.is_mean and told not in seen:
                seen.add(told)
                yield Ending(row, column.title, task, counts)
