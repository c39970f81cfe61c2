"""The tables of one system: languages and benchmarks, means over them, and lm-eval's own groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from trimix_lm_eval.analysis.report.cells import (
    Cell,
    Cells,
    Column,
    Table,
    cell_of,
    compared_table,
    mean,
    resample,
)
from trimix_lm_eval.analysis.report.layout import Layout, across, layouts
from trimix_lm_eval.analysis.report.oracles import Shown, filtered, of_all, oracles, titled
from trimix_lm_eval.analysis.report.systems import System, TableRow
from trimix_lm_eval.analysis.results import MetricValue, Run
from trimix_lm_eval.analysis.results.scores import mapping
from trimix_lm_eval.utils.progress import progress_bar

_NOTE = (
    "As lm-eval aggregated them: tasks weigh the same, or by their documents, as the group has it."
)


def tables(system: System) -> list[Table]:
    """All tables of a system; those of means over languages come first."""
    metrics = {
        task: score.metric
        for run in system.runs
        for task in run.scores
        if (score := run.main(task)) is not None
    }
    if not metrics:
        return []
    shown = {task: _measures(system, task, metric) for task, metric in metrics.items()}
    plan = layouts(list(shown), metrics, _groups(system))
    rows = {part.name: [*system.shown(part.tasks), *oracles(system, part, shown)] for part in plan}
    cells = resampled_cells(plan, rows, shown)
    parts = [_table(part, rows[part.name], shown, cells) for part in plan]
    over = [_across(title, names, parts) for title, names in across(plan)]
    made = [table for table in [*over, *parts] if table.columns]
    groups = _group_table(system, made, cells)
    return [*made, groups] if groups else made


def _measures(system: System, task: str, metric: str) -> tuple[tuple[str, str], ...]:
    """A task's metric under each filter that any run has it under."""
    scores = (score for run in system.runs for score in run.scores.get(task, ()))
    return tuple(dict.fromkeys((s.metric, s.filter) for s in scores if s.metric == metric))


def _groups(system: System) -> dict[str, Sequence[str]]:
    found: dict[str, Sequence[str]] = {}
    for run in system.runs:
        for name, members in mapping(run.raw, "group_subtasks").items():
            if isinstance(members, list) and members:
                found[str(name)] = [str(member) for member in members]
    return found


def resampled_cells(
    plan: Sequence[Layout], rows: Mapping[str, Sequence[TableRow]], shown: Shown
) -> Cells:
    """The numbers of all tables' rows, each on resamples of its task's documents."""
    wanted: dict[str, dict[tuple[str, str, str, str], Cell]] = {}
    for part in plan:
        means = [it.measures for mean in part.means for it in filtered(mean, shown)]
        for task in part.tasks:
            measures = [*shown[task], *(it[task] for it in means if task in it)]
            for row, measure in product(rows[part.name], dict.fromkeys(measures)):
                run = row.run_of(task, measure[1])
                cell = cell_of(run, task, *measure) if run else None
                if run and cell:
                    at = (task, *measure, str(run.path))
                    wanted.setdefault(task, {})[at] = cell
    done: Cells = {}
    bar = progress_bar(wanted.items(), "resampling", unit="task", leave=False, delay=1)
    for task, cells in bar:
        done.update(zip(cells, resample(task, cells.values()), strict=True))
    return done


def _table(part: Layout, rows: Sequence[TableRow], shown: Shown, cells: Cells) -> Table:
    rows = [row for row in rows if any(task in row.runs for task in part.tasks)]
    return compared_table(
        part.name, part.title, part.note, rows, columns_of(part, rows, shown, cells)
    )


def columns_of(
    part: Layout, rows: Sequence[TableRow], shown: Shown, cells: Cells
) -> list[tuple[Column, list[Cell | None]]]:
    """The columns of a table that hold any number: tasks, then means, with a cell for each row."""

    def cell(row: TableRow, task: str, measure: tuple[str, str]) -> Cell | None:
        run = row.run_of(task, measure[1])
        return cells.get((task, *measure, str(run.path))) if run else None

    columns: list[tuple[Column, list[Cell | None]]] = []

    def add(title: str, tasks: tuple[str, ...], is_mean: bool, made: list[Cell | None]) -> None:
        first = next((it for it in made if it is not None), None)
        if first is not None:
            head = Column(title, tasks, first.metric, first.filter, first.higher_is_better, is_mean)
            columns.append((head, made))

    for task, title in zip(part.tasks, part.short, strict=True):
        for measure in shown[task]:
            name = titled(title, measure[1] if len(shown[task]) > 1 else "")
            add(name, (task,), False, [cell(row, task, measure) for row in rows])
    for it in [made for mean_of in part.means for made in filtered(mean_of, shown)]:
        of_rows = [mean([cell(row, *pair) for pair in it.measures.items()]) for row in rows]
        add(it.title, tuple(it.measures), True, of_rows)
    return columns


def _across(title: str, names: Sequence[str], parts: Sequence[Table]) -> Table:
    """Means over the tables of these names, of the rows and the columns that all of them have."""
    used = [part for part in parts if part.name in names]
    by_key = [{row.key: (row, cells) for row, cells in part.rows} for part in used]
    keys = [key for key in by_key[0] if all(key in others for others in by_key)]
    rows = [of_all(by_key[0][key][0], [others[key][0] for others in by_key]) for key in keys]
    means = [{c.title: i for i, c in enumerate(part.columns) if c.is_mean} for part in used]
    shared = [head for head in means[0] if all(head in others for others in means)]
    columns = []
    for head in shared:
        places = [places_of[head] for places_of in means]
        made = [
            mean([there[key][1][place] for there, place in zip(by_key, places, strict=True)])
            for key in keys
        ]
        heads = [part.columns[place] for part, place in zip(used, places, strict=True)]
        tasks = tuple(task for it in heads for task in it.tasks)
        columns.append((heads[0]._replace(tasks=tasks), made))
    table = compared_table(f"across {' '.join(names)}", title, "", rows, columns)
    return replace(table, rows=tuple((row, cells) for row, cells in table.rows if any(cells)))


def _group_table(system: System, tables: Sequence[Table], cells: Cells) -> Table | None:
    """The table of all groups that no column of a table shows already; None if there are none."""
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
    columns = []
    for (name, filter_name, _), (leaves, score) in heads.items():
        title = titled(_told(name, leaves, kinds[name]), filter_name if name in several else "")
        up = score.higher_is_better
        head = Column(title, tuple(leaves), score.metric, score.filter, up, True)
        made = [_group_cell(row, name, set(leaves), score, cells) for row in rows]
        columns.append((head, made))
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


def _group_cell(
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
