"""The tables of one system: languages and benchmarks, and means over them."""

from __future__ import annotations

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
from trimix_lm_eval.analysis.report.groups import group_table
from trimix_lm_eval.analysis.report.layout import Layout, across, layouts
from trimix_lm_eval.analysis.report.oracles import Shown, filtered, of_all, oracles, titled
from trimix_lm_eval.analysis.report.systems import System, TableRow
from trimix_lm_eval.utils.progress import progress_bar


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
    cells = _cells(plan, rows, shown)
    parts = [_table(part, rows[part.name], shown, cells) for part in plan]
    over = [_across(title, names, parts) for title, names in across(plan)]
    made = [table for table in [*over, *parts] if table.columns]
    groups = group_table(system, made, cells)
    return [*made, groups] if groups else made


def _measures(system: System, task: str, metric: str) -> tuple[tuple[str, str], ...]:
    """A task's metric under each filter that any run has it under."""
    scores = (score for run in system.runs for score in run.scores.get(task, ()))
    return tuple(dict.fromkeys((s.metric, s.filter) for s in scores if s.metric == metric))


def _groups(system: System) -> dict[str, Sequence[str]]:
    found: dict[str, Sequence[str]] = {}
    for run in system.runs:
        groups = run.raw.get("group_subtasks")
        for name, members in (groups if isinstance(groups, dict) else {}).items():
            if isinstance(members, list) and members:
                found[str(name)] = [str(member) for member in members]
    return found


def _cells(plan: Sequence[Layout], rows: Mapping[str, Sequence[TableRow]], shown: Shown) -> Cells:
    """Every number of every row, resampled."""
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
    def cell(row: TableRow, task: str, measure: tuple[str, str]) -> Cell | None:
        run = row.run_of(task, measure[1])
        return cells.get((task, *measure, str(run.path))) if run else None

    rows = [row for row in rows if any(task in row.runs for task in part.tasks)]
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
    return compared_table(part.name, part.title, part.note, rows, columns)


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
