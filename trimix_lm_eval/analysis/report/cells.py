"""Tables and their numbers: a score or a mean, and how it stands to the best single model.

A `Cell` keeps what it was made from: the runs, the documents, the metric on every resample. So a
mean over tasks or languages is made of cells, and is tested as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from trimix_lm_eval.analysis.report import bootstrap
from trimix_lm_eval.analysis.report.bootstrap import Statistics, read_samples, statistics
from trimix_lm_eval.analysis.report.systems import TableRow
from trimix_lm_eval.analysis.results import MetricValue, Run


@dataclass(frozen=True, eq=False)
class Cell:
    """One number.

    Attributes:
        value: In the metric's own unit.
        stderr_from: ``lm-eval``, ``bootstrap``, or of a mean ``tasks``; empty if there is none.
        filter: lm-eval's, of a mean all that its tasks have.
        n: Documents of each task it was measured on.
        of: Documents that each task has.
        reasons: Why it is not comparable with published numbers; empty if it is.
        documents: What the resamples were drawn from.
        resampled: The metric on each draw ``[R]``, or why there are none.
        reference: The best single model's row, if there is one on the same documents.
        delta: Value minus reference.
        test: Of that difference.
        why_not: Why there is no test; empty if there is.
    """

    value: float
    stderr: float | None
    stderr_from: str
    metric: str
    filter: str
    higher_is_better: bool
    n: tuple[int, ...]
    of: tuple[int, ...]
    runs: tuple[Run, ...]
    reasons: tuple[str, ...]
    documents: Any = None
    resampled: np.ndarray | str = "no samples"
    reference: TableRow | None = None
    is_reference: bool = False
    delta: float | None = None
    test: bootstrap.Test | None = None
    why_not: str = ""

    @property
    def goodness(self) -> float:
        """Higher is better."""
        return self.value if self.higher_is_better else -self.value

    @property
    def better(self) -> bool:
        """Whether it is better than the reference."""
        if not self.delta:
            return False
        return (self.delta > 0) == self.higher_is_better

    @property
    def point(self) -> str:
        """The weights behind it, if they are one point."""
        points = {run.weights.label() for run in self.runs if run.weights is not None}
        return points.pop() if len(points) == 1 else ""


#: By task, metric, filter and file of a run.
Cells = dict[tuple[str, str, str, str], Cell]


class Column(NamedTuple):
    """The head of a column: a task under a filter, or a mean.

    Attributes:
        title: Short; where a task has several filters, the filter's name stands behind it.
        tasks: One task, or those of a mean.
        filter: lm-eval's, of a mean all that its tasks have.
    """

    title: str
    tasks: tuple[str, ...]
    metric: str
    filter: str
    higher_is_better: bool
    is_mean: bool


@dataclass(frozen=True)
class Table:
    """A table of numbers: its heads, and rows with a cell, or None, for each column.

    Attributes:
        name: Of the group or tag; unique in a system.
        title: For people.
        note: What is missing.
    """

    name: str
    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[TableRow, tuple[Cell | None, ...]], ...]

    def column(self, place: int) -> list[Cell]:
        """The numbers of a column."""
        return [cell for _, cells in self.rows if (cell := cells[place]) is not None]

    def best(self, column: int) -> list[Cell]:
        """The best of a column: oracles do not count, nor limited runs beside whole ones."""
        cells = [cells[column] for row, cells in self.rows if row.kind != "oracle"]
        there = [cell for cell in cells if cell is not None]
        whole = [cell for cell in there if not cell.reasons] or there
        top = max((cell.goodness for cell in whole), default=0.0)
        return [cell for cell in whole if cell.goodness == top] if len(whole) > 1 else []


def cell_of(run: Run, task: str, metric: str, filter_name: str) -> Cell | None:
    """A run's number of a task or group, not yet resampled; None if it has no such number."""
    score = score_of(run, task, metric, filter_name)
    if score is None:
        return None
    return Cell(
        score.value,
        score.stderr,
        "lm-eval" if score.stderr is not None else "",
        score.metric,
        score.filter,
        score.higher_is_better,
        (score.n,),
        (score.of,),
        (run,),
        tuple(run.deviations(task)),
    )


def score_of(run: Run, task: str, metric: str, filter_name: str) -> MetricValue | None:
    """The score of a task or group under a metric and filter."""
    scores = run.scores.get(task) or run.groups.get(task, [])
    return next((s for s in scores if (s.metric, s.filter) == (metric, filter_name)), None)


def mean(cells: Sequence[Cell | None]) -> Cell | None:
    """The mean of cells with the same unit, of equal weight; None if one is missing.

    The standard error is that of a mean of independent numbers, as lm-eval's for groups.
    """
    there = [cell for cell in cells if cell is not None]
    if not there or len(there) < len(cells):
        return None
    errors = [cell.stderr for cell in there if cell.stderr is not None]
    stderr = math.sqrt(sum(e * e for e in errors)) / len(there)
    draws = [cell.resampled for cell in there if not isinstance(cell.resampled, str)]
    missing = [cell.resampled for cell in there if isinstance(cell.resampled, str)]
    return Cell(
        sum(cell.value for cell in there) / len(there),
        stderr if len(errors) == len(there) else None,
        "tasks" if len(errors) == len(there) else "",
        there[0].metric,
        ", ".join(dict.fromkeys(cell.filter for cell in there)),
        there[0].higher_is_better,
        tuple(n for cell in there for n in cell.n),
        tuple(n for cell in there for n in cell.of),
        tuple(dict.fromkeys(run for cell in there for run in cell.runs)),
        tuple(dict.fromkeys(reason for cell in there for reason in cell.reasons)),
        tuple(cell.documents for cell in there),
        missing[0] if missing else sum(draws[1:], draws[0]) / len(draws),
    )


def resample(task: str, cells: Iterable[Cell]) -> list[Cell]:
    """Draw the documents of a task and score all cells of `cell_of` on each draw.

    They come back with resamples, and with the bootstrap's standard error where lm-eval gives none.
    """
    given = list(cells)
    read: dict[Any, Any] = {}
    found: list[Statistics | str] = []
    for cell in given:
        run = cell.runs[0]
        if run.path not in read:
            read[run.path] = read_samples(run, task)
        score = score_of(run, task, cell.metric, cell.filter)
        found.append(statistics(read[run.path], score) if score else "no samples")
    batches: dict[Any, dict[str, Statistics]] = {}
    for place, it in enumerate(found):
        if not isinstance(it, str):
            batches.setdefault(it.documents, {})[str(place)] = it
    draws: dict[str, np.ndarray] = {}
    for batch in batches.values():
        draws |= bootstrap.resample(task, batch)
    return [_with_draws(cell, found[i], draws.get(str(i))) for i, cell in enumerate(given)]


def _with_draws(cell: Cell, found: Statistics | str, draws: np.ndarray | None) -> Cell:
    if isinstance(found, str) or draws is None:
        return replace(cell, resampled=str(found))
    if cell.stderr is None and len(found.documents) > 1:
        cell = replace(cell, stderr=float(draws.std(ddof=1)), stderr_from="bootstrap")
    if len(found.documents) < bootstrap.LEAST:
        return replace(cell, resampled=f"not tested: fewer than {bootstrap.LEAST} documents")
    return replace(cell, documents=found.documents, resampled=draws)


def compared_table(
    name: str,
    title: str,
    note: str,
    rows: Sequence[TableRow],
    columns: Sequence[tuple[Column, Sequence[Cell | None]]],
) -> Table:
    """A `Table` of columns with a cell, or None, for each row, all compared with the reference."""
    found = [_compared(list(zip(rows, cells, strict=True))) for _, cells in columns]
    body = tuple((row, tuple(cells[i] for cells in found)) for i, row in enumerate(rows))
    return Table(name, title, note, tuple(head for head, _ in columns), body)


def _compared(rows: Sequence[tuple[TableRow, Cell | None]]) -> list[Cell | None]:
    """Compare each cell of a column with the best single model on as many documents, run alike."""
    singles = [(row, cell) for row, cell in rows if row.single and cell is not None]
    found: list[Cell | None] = []
    for row, cell in rows:
        if cell is None:
            found.append(None)
            continue
        seen = [(r, c) for r, c in singles if c.n == cell.n]
        fitting = [(r, c) for r, c in seen if c.reasons == cell.reasons]
        if not fitting:
            lacking = "under the same protocol" if seen else "on these documents"
            found.append(replace(cell, why_not=f"no single model {lacking}"))
            continue
        best, its = max(fitting, key=lambda pair: pair[1].goodness)
        if best is row:
            found.append(replace(cell, reference=best, is_reference=True))
            continue
        test, why_not = tested(cell, its, "the best single model")
        if row.kind == "oracle":
            test, why_not = None, "not tested: chosen on the test scores"
        found.append(
            replace(cell, reference=best, delta=cell.value - its.value, test=test, why_not=why_not)
        )
    return found


def tested(cell: Cell, reference: Cell, called: str) -> tuple[bootstrap.Test | None, str]:
    """Test a cell against a reference, so called in words; or why there is no test, in a phrase."""
    if isinstance(cell.resampled, str):
        return None, cell.resampled
    if isinstance(reference.resampled, str):
        whose = f" of {called}" if reference.resampled == "no samples" else ""
        return None, reference.resampled + whose
    if cell.documents != reference.documents:
        return None, f"not available: not the same documents as {called}'s"
    return bootstrap.compare(cell.resampled, reference.resampled), ""
