"""Files of exported results -> entries of the leaderboard: one for each task of a run.

An entry shows the number that a task is known by; its other metrics are details. Of a task with
several filters each is an entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trimix_lm_eval.analysis.export import refusals
from trimix_lm_eval.analysis.export.table import ResultRow, read_csv, rows_of
from trimix_lm_eval.analysis.results import find, read


@dataclass(frozen=True)
class Entry:
    """A line of the leaderboard.

    Attributes:
        row: The number that the task is known by.
        others: The task's other metrics in the same run, under the same filter.
        best: Whether no entry of this task and metric does better.
    """

    row: ResultRow
    others: tuple[ResultRow, ...]
    best: bool


def files(folder: Path) -> list[Path]:
    """The files that `collect` reads."""
    return [*find(folder, ".csv")[0], *find(folder, ".json", "results")[0]]


def collect(folder: Path) -> tuple[list[Entry], list[refusals.Refused]]:
    """Read all that a folder holds.

    Returns:
        Entries by task, the best first; and the files, or lines of files, that are left out, with
        the reason.
    """
    rows: list[ResultRow] = []
    left_out: list[refusals.Refused] = []
    tables, unread = find(folder, ".csv")
    for path in tables:
        found, problems = read_csv(path)
        rows += found
        left_out += refusals.unreadable(problems)
    results, _ = find(folder, ".json", "results")
    runs, problems = read(results)
    passed, refused = refusals.assessed(runs, [*unread, *problems])
    rows += rows_of(passed)
    left_out += refused
    # A run may be there both as JSON and as CSV, or be sent in twice.
    return group(dict.fromkeys(rows)), left_out


def group(rows: Iterable[ResultRow]) -> list[Entry]:
    """Group the metrics of one task in one run, and find the best of each task."""
    grouped: dict[tuple[object, ...], list[ResultRow]] = {}
    for row in rows:
        key = (row.task, row.run, row.date, row.setting, tuple(row.sources()))
        grouped.setdefault(key, []).append(row)
    shown = [entry for group in grouped.values() for entry in _filtered(group)]
    top: dict[tuple[str, str, str], float] = {}
    for row, _ in shown:
        measure = (row.task, row.metric, row.filter)
        top[measure] = max(top.get(measure, float("-inf")), _good(row))
    entries = [
        Entry(row, others, _good(row) == top[(row.task, row.metric, row.filter)])
        for row, others in shown
    ]
    return sorted(
        entries,
        key=lambda e: (e.row.task, e.row.metric, e.row.filter, -_good(e.row), e.row.setting),
    )


def _filtered(group: list[ResultRow]) -> Iterator[tuple[ResultRow, tuple[ResultRow, ...]]]:
    """By filter, the number that a task is known by and its other metrics."""
    main = next((row for row in group if row.main), group[0])
    shown = {row.filter: row for row in reversed(group) if row.metric == main.metric}
    shown[main.filter] = main
    for name, row in reversed(shown.items()):
        # Metrics of a filter that the main one is not known under stand with the main entry.
        names = {name, *({it.filter for it in group} - shown.keys() if row is main else ())}
        yield row, tuple(it for it in group if it is not row and it.filter in names)


def _good(row: ResultRow) -> float:
    """The value, so that more is better."""
    return row.value if row.higher_is_better else -row.value
