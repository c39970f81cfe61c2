"""Upper bounds: rows whose runs were chosen by their test scores. Never methods, and named so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from trimix_lm_eval.analysis.report.cells import Cell, cell_of, mean
from trimix_lm_eval.analysis.report.layout import Layout
from trimix_lm_eval.analysis.report.systems import System, TableRow
from trimix_lm_eval.analysis.results import Run
from trimix_lm_eval.fusion.weights import Weights

#: The metric that a task is shown by, and lm-eval's filter.
Shown = Mapping[str, tuple[str, str]]


def oracles(system: System, part: Layout, shown: Shown) -> Iterator[TableRow]:
    """Of each plane of points: the best point of each task, and the best of the whole table."""
    for plane in dict.fromkeys(row.plane for row in system.points):
        points = [row for row in system.points if row.plane == plane]
        found = {task: candidates(points, task, shown[task]) for task in part.tasks}
        found = {task: there for task, there in found.items() if len(there) > 1}
        if not found:
            continue
        best = {task: max(there, key=_goodness)[1] for task, there in found.items()}
        yield _oracle(
            "Upper bound, each task",
            "oracle by task",
            {task: row.runs[task] for task, row in best.items()},
            [{row.weights for _, row in there} for there in found.values()],
            plane,
        )
        if part.means:
            yield from _oracle_by_table(points, part, shown, plane)


def _oracle_by_table(
    points: Sequence[TableRow], part: Layout, shown: Shown, plane: tuple[str, str]
) -> Iterator[TableRow]:
    last = part.means[-1]
    metrics = {task: metric_of(last.by_score, task, shown) for task in last.tasks}
    there: dict[Weights | None, tuple[Cell, TableRow]] = {}
    for row in points:
        if row.runs.keys() >= metrics.keys():
            cell = mean([cell_of(row.runs[task], task, *metrics[task]) for task in last.tasks])
            if cell is not None:
                there[row.weights] = cell, row
    if len(there) > 1:
        best = max(there.values(), key=_goodness)[1]
        title = f"Upper bound, one point for {last.title}"
        oracle = _oracle(title, "oracle by table", dict(best.runs), [set(there)], plane)
        point = best.weights.label() if best.weights else ""
        yield replace(oracle, detail=f"{oracle.detail}: {point}")


def _oracle(
    title: str,
    key: str,
    runs: dict[str, Run],
    chosen_from: Sequence[set[Weights | None]],
    plane: tuple[str, str],
) -> TableRow:
    """An oracle, which says of how many points it is the best (of each task, if they differ)."""
    variant, circumstances = plane
    sizes = sorted({len(points) for points in chosen_from})
    many = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    same = all(points == chosen_from[0] for points in chosen_from)
    suffix = ", ".join(filter(None, plane))
    return TableRow(
        f"{key} [{suffix}]" if suffix else key,
        title + (f" ({circumstances})" if circumstances else ""),
        "oracle",
        runs,
        variant=variant,
        circumstances=circumstances,
        points=frozenset(filter(None, chosen_from[0])) if same else frozenset(),
        detail=f"oracle of {many} points, chosen on the test scores",
    )


def candidates(
    points: Sequence[TableRow], task: str, shown: tuple[str, str]
) -> list[tuple[Cell, TableRow]]:
    """The points that an oracle may choose from on a task, each once: the newest run of it.

    Points that saw fewer documents than others do not take part.
    """
    there: dict[Weights | None, tuple[Cell, TableRow]] = {}
    for row in points:
        cell = cell_of(row.runs[task], task, *shown) if task in row.runs else None
        if cell is not None:
            there[row.weights] = cell, row
    most = max((cell.n for cell, _ in there.values()), default=(0,))
    return [(cell, row) for cell, row in there.values() if cell.n == most]


def _goodness(candidate: tuple[Cell, TableRow]) -> float:
    return candidate[0].goodness


def metric_of(by_score: bool, task: str, shown: Shown) -> tuple[str, str]:
    """Metric and filter of a task, alone or in a mean."""
    metric, filter_name = shown[task]
    return ("score" if by_score else metric), filter_name


def of_all(row: TableRow, same: Sequence[TableRow]) -> TableRow:
    """A row of several tables as one; each has an oracle's point of its own."""
    if row.kind != "oracle":
        return row
    points = row.points if all(other.points == row.points for other in same) else frozenset()
    details = dict.fromkeys(other.detail.partition(":")[0] for other in same)
    return replace(row, points=points, detail="; ".join(details))
