"""What came of a sweep, for reading: a row per variant, a column per task."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from trimix_lm_eval.analysis.results import MetricValue, Run, read

#: More columns than a terminal shows are left to the report.
_COLUMNS = 6


def lines(written: Sequence[Path]) -> Iterator[str]:
    """The tables of all settings, in the order of the files as written, and where they are."""
    found, problems = read(written)
    runs = {run.path: run for run in found}
    by_setting: dict[str, list[Run]] = {}
    for run in (runs[path] for path in written if path in runs):
        by_setting.setdefault(run.trimix["sweep"]["setting"], []).append(run)
    for setting, mine in by_setting.items():
        if setting:
            yield f"\n{setting}"
        yield from _table(mine)
    lacking = [(it.path, it.what) for it in problems]  # a variant has no number at all
    for path, what in [*lacking, *((run.path, "; ".join(run.lost)) for run in found if run.lost)]:
        yield f"{path.parents[1].name}: {what}"
    folder = Path(os.path.commonpath([path.parents[1] for path in written]))
    yield f"{len(written)} results below {folder}; compare them with: trimix report {folder}"


def _table(runs: Sequence[Run]) -> Iterator[str]:
    """One setting's table: a column per task, and per filter of lm-eval's where it has several."""
    found = [
        {(s.task, _head(run, s)): s.value for task in run.scores for s in run.filtered(task)}
        for run in runs
    ]
    # A variant that lacks a number must not move its column to the end.
    complete = sorted(found, key=len, reverse=True)
    columns = list(dict.fromkeys(column for values in complete for column in values))
    shown = columns[:_COLUMNS]
    tasks = list(dict.fromkeys(task for task, _ in shown))
    shared = os.path.commonprefix(tasks).rpartition("_")[0] if len(tasks) > 1 else ""
    rows = [["", *(task.removeprefix(f"{shared}_") for task, _ in shown)]]
    rows.append(["", *(head for _, head in shown)])
    for run, values in zip(runs, found, strict=True):
        rows.append([run.label, *(_cell(values.get(column)) for column in shown)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for name, *cells in rows:
        right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        yield "  ".join([name.ljust(widths[0]), *right]).rstrip()
    if len(columns) > len(shown):
        yield f"and {len(columns) - len(shown)} more columns"


def _head(run: Run, score: MetricValue) -> str:
    of = f" ({score.filter})" if len(run.filtered(score.task)) > 1 else ""
    return f"{score.metric}{of} {'↑' if score.higher_is_better else '↓'}"


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
