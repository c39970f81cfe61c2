"""The groups that lm-eval itself aggregates, where no mean of ours says the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from trimix_lm_eval.analysis.report.cells import Cell, Cells, Column, Table, cell_of, compared_table
from trimix_lm_eval.analysis.report.oracles import titled
from trimix_lm_eval.analysis.report.systems import System, TableRow
from trimix_lm_eval.analysis.results import MetricValue, Run

_NOTE = (
    "As lm-eval aggregated them: tasks weigh the same, or by their documents, as the group has it."
)


def group_table(system: System, tables: Sequence[Table], cells: Cells) -> Table | None:
    """The table of all groups that are no column of another table; None if there are none.

    Args:
        system: Its rows have the runs.
        tables: What is shown already.
        cells: Of the tasks, resampled.
    """
    # A group may have other tasks in another run: then its numbers do not stand in one column.
    heads: dict[tuple[str, str, frozenset[str]], tuple[list[str], MetricValue]] = {}
    several: set[str] = set()
    for run in system.runs:
        for name in run.groups:
            scores = run.filtered(name)
            several |= {name} if len(scores) > 1 else set()
            for score in scores:
                if not _is_shown(run, score, tables):
                    leaves = run.leaves(name)
                    heads[name, score.filter, frozenset(leaves)] = leaves, score
    tasks = [task for leaves, _ in heads.values() for task in leaves]
    names = {name for name, _, _ in heads}
    kinds = {name: [leaves for other, _, leaves in heads if other == name] for name in names}
    rows = [row for row in system.shown(tasks) if row.groups.keys() & names]
    if not rows:
        return None
    columns = [
        (
            Column(
                titled(_told(name, leaves, kinds[name]), filter_name if name in several else ""),
                tuple(leaves),
                score.metric,
                score.filter,
                score.higher_is_better,
                True,
            ),
            [_cell(row, name, set(leaves), score, cells) for row in rows],
        )
        for (name, filter_name, _), (leaves, score) in heads.items()
    ]
    return compared_table("Groups", "Groups", _NOTE, rows, columns)


def _is_shown(run: Run, score: MetricValue, tables: Sequence[Table]) -> bool:
    """Whether a mean of ours over the same tasks is the same number."""
    leaves = set(run.leaves(score.task))
    for table in tables:
        for i, column in enumerate(table.columns):
            measure = column.metric, column.filter
            if column.is_mean and measure == score[1:3] and set(column.tasks) == leaves:
                mine = [cell for cell in table.column(i) if cell.runs == (run,)]
                return any(_equal(cell.value, score.value) for cell in mine)
    return False


def _equal(ours: float, theirs: float) -> bool:
    return math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=1e-9)


def _told(name: str, leaves: Sequence[str], kinds: Sequence[frozenset[str]]) -> str:
    """A group's name; where it has several sets of tasks, with what tells them apart."""
    others = [kind for kind in kinds if kind != set(leaves)]
    if not others:
        return name
    alike = [kind for kind in others if len(kind) == len(leaves)]
    return f"{name} ({', '.join(leaves) if alike else f'{len(leaves)} tasks'})"


def _cell(
    row: TableRow, group: str, leaves: set[str], shown: MetricValue, cells: Cells
) -> Cell | None:
    run = row.groups.get(group)
    cell = cell_of(run, group, shown.metric, shown.filter) if run else None
    if run is None or cell is None or set(run.leaves(group)) != leaves:
        return None
    parts = [
        cells.get((task, shown.metric, shown.filter, str(run.path))) for task in run.leaves(group)
    ]
    return _resampled(cell, [part for part in parts if part is not None], len(parts))


def _resampled(cell: Cell, parts: Sequence[Cell], wanted: int) -> Cell:
    """A group on resamples of its tasks' documents, if it is a mean of its tasks'."""
    if len(parts) < wanted:
        return replace(cell, resampled="not available: its tasks are not resampled")
    missing = [part.resampled for part in parts if isinstance(part.resampled, str)]
    if missing:
        return replace(cell, resampled=missing[0])
    draws = [part.resampled for part in parts if not isinstance(part.resampled, str)]
    documents = tuple(part.documents for part in parts)
    for weights in ([1] * wanted, [sum(part.n) for part in parts]):
        shares = [weight / max(sum(weights), 1) for weight in weights]
        value = sum(share * part.value for share, part in zip(shares, parts, strict=True))
        if _equal(value, cell.value):
            weighted = [share * draw for share, draw in zip(shares, draws, strict=True)]
            return replace(cell, documents=documents, resampled=sum(weighted[1:], weighted[0]))
    return replace(cell, resampled="not available: it is no mean of its tasks")
