"""What there is to see of the plane of alpha and beta: scores, prompt NLL, choices, gaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from trimix_lm_eval.analysis.report.cells import Cell, Table, cell_of
from trimix_lm_eval.analysis.report.numbers import Scale, scale
from trimix_lm_eval.analysis.report.oracles import candidates, titled
from trimix_lm_eval.analysis.report.systems import System, TableRow
from trimix_lm_eval.analysis.results import Run
from trimix_lm_eval.fusion.weights import Weights, parse

#: So many points make a map.
LEAST = 4


class Point(NamedTuple):
    """A fixed point on a task, its score, and the prompt NLL per token if a sweep recorded it."""

    weights: Weights
    cell: Cell
    nll: float | None


class Slice(NamedTuple):
    """The points that a map of two axes can show together: those of one gamma.

    Attributes:
        gamma: Of all of them; None where it is alpha, which it is unless somebody frees it.
    """

    gamma: float | None
    points: tuple[Point, ...]

    def holds(self, weights: Weights) -> bool:
        """Whether a point lies in it."""
        if self.gamma is None:
            return weights.gamma is None
        return self.gamma == (weights.alpha if weights.gamma is None else weights.gamma)


class ChosenPoints(NamedTuple):
    """How often a policy chose each point on a task, the most frequent first."""

    row: TableRow
    counts: tuple[tuple[Weights, int], ...]

    @property
    def share(self) -> float:
        """Of the most frequent choice."""
        return self.counts[0][1] / sum(count for _, count in self.counts)


@dataclass(frozen=True)
class Plane:
    """One task's plane.

    Attributes:
        title: The task, behind it the filter's name if the task has several.
        points: All fixed points, Proxy Tuning included.
        oracle: The best of them, if there are two.
        rho: Spearman's rank correlation of prompt NLL and score.
        p: Of no correlation.
        reasons: Why the scores are not comparable with published ones.
        circumstances: What all of its points have in common, see `Run.circumstances`.
    """

    task: str
    title: str
    metric: str
    filter: str
    higher_is_better: bool
    points: tuple[Point, ...]
    oracle: Weights | None
    choices: tuple[ChosenPoints, ...]
    rho: float | None
    p: float | None
    reasons: tuple[str, ...]
    circumstances: str

    @property
    def gammas(self) -> list[float]:
        """What gamma is in points and choices where it is not alpha; empty if it never is free."""
        chosen = [weights for choice in self.choices for weights, _ in choice.counts]
        points = [*(point.weights for point in self.points), *chosen]
        return sorted({weights.gamma for weights in points if weights.gamma is not None})

    @property
    def slices(self) -> list[Slice]:
        """The slices with points enough for a map; gamma = alpha first."""
        own = Counter(point.weights.gamma for point in self.points)
        cuts = (Slice(gamma, self.points) for gamma in (None, *self.gammas) if own[gamma] >= LEAST)
        return [
            cut._replace(points=tuple(p for p in cut.points if cut.holds(p.weights)))
            for cut in cuts
        ]

    @property
    def scattered(self) -> list[Point]:
        """The points whose prompt NLL is known."""
        return [point for point in self.points if point.nll is not None]

    @property
    def scale(self) -> Scale:
        """How the scores are written."""
        return scale(self.metric, [point.cell.value for point in self.points])


def planes(system: System, tables: Sequence[Table]) -> list[Plane]:
    """The planes of a system's tasks that have fixed points or choices, in the tables' order."""
    columns = [column for table in tables for column in table.columns if not column.is_mean]
    shown = dict.fromkeys((column.tasks[0], column.metric, column.filter) for column in columns)
    of_task = Counter(task for task, _, _ in shown)
    found = (
        _plane(system, task, titled(task, which[1] if of_task[task] > 1 else ""), which)
        for task, *which in shown
    )
    return [plane for plane in found if plane.points or plane.choices]


def _plane(system: System, task: str, title: str, shown: Sequence[str]) -> Plane:
    # One plane only: that with the most points, of these the first.
    by_plane: dict[tuple[str, str], list[TableRow]] = {}
    for row in system.points:
        if task in row.runs:
            by_plane.setdefault(row.plane, []).append(row)
    rows = max(by_plane.values(), key=len, default=[])
    variant, circumstances = rows[0].plane if rows else (None, "")
    nll = _prompt_nll(system, task)
    at: dict[Weights, Point] = {}
    for row in rows:
        cell = cell_of(row.runs[task], task, shown[0], shown[1])
        if cell is not None and row.weights is not None:
            at[row.weights] = Point(row.weights, cell, nll.get(row.weights))
    points = sorted(at.values(), key=lambda point: point.weights[:2])
    there = candidates(rows, task, (shown[0], shown[1]))
    best = max(there, key=lambda pair: pair[0].goodness)[1] if len(there) > 1 else None
    choices = tuple(
        ChosenPoints(row, counts)
        for row in system.rows.values()
        if row.kind == "policy" and variant in (None, row.variant)
        if task in row.runs and (counts := _counts(row.runs[task], task))
    )
    rho, p = _spearman(points)
    return Plane(
        task,
        title,
        shown[0],
        shown[1],
        points[0].cell.higher_is_better if points else True,
        tuple(points),
        best.weights if best else None,
        choices,
        rho,
        p,
        tuple(dict.fromkeys(reason for point in points for reason in point.cell.reasons)),
        circumstances,
    )


def _prompt_nll(system: System, task: str) -> dict[Weights, float]:
    """From whichever runs recorded it; the newest wins."""
    found: dict[Weights, float] = {}
    for run in system.runs:
        for label, value in run.prompt_nll(task).items():
            weights = parse(label)
            if weights:
                found[weights] = value
    return found


def _counts(run: Run, task: str) -> tuple[tuple[Weights, int], ...]:
    pairs = [(parse(label), count) for label, count in run.chosen(task).items()]
    known = [(weights, count) for weights, count in pairs if weights]
    return tuple(sorted(known, key=lambda pair: -pair[1]))


def _spearman(points: Sequence[Point]) -> tuple[float | None, float | None]:
    """Of prompt NLL and score; nothing for fewer than `LEAST` points, or where one is constant."""
    pairs = [(point.nll, point.cell.value) for point in points if point.nll is not None]
    if len(pairs) < LEAST or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None, None
    from scipy.stats import spearmanr

    found = spearmanr(*zip(*pairs, strict=True))
    return float(found.statistic), float(found.pvalue)


class Gap(NamedTuple):
    """What a row leaves to the upper bound on a column; below 0 if the row is better."""

    row: TableRow
    column: str
    cell: Cell
    oracle: Cell
    gap: float


def gaps(table: Table) -> Iterator[Gap]:
    """How much each row leaves to the oracle of each task, on the same number of documents."""
    oracles: Mapping[tuple[str, str], tuple[Cell | None, ...]] = {
        row.plane: cells for row, cells in table.rows if row.key.startswith("oracle by task")
    }
    for row, cells in table.rows:
        its = oracles.get(row.plane) or oracles.get((row.variant, ""))
        if row.kind == "oracle" or its is None:
            continue
        for column, cell, oracle in zip(table.columns, cells, its, strict=True):
            if cell is not None and oracle is not None and cell.n == oracle.n:
                yield Gap(row, column.title, cell, oracle, oracle.goodness - cell.goodness)
