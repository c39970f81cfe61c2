"""Upper bounds: rows whose runs were chosen by their test scores. Never methods, and named so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from trimix_lm_eval.analysis.report.cells import Cell, cell_of, mean
from trimix_lm_eval.analysis.report.layout import Layout, Mean
from trimix_lm_eval.analysis.report.systems import System, TableRow
from trimix_lm_eval.analysis.results import Run
from trimix_lm_eval.fusion.weights import Weights

#: By task, the metric that it is shown by and lm-eval's filter; several if it has several filters.
Shown = Mapping[str, tuple[tuple[str, str], ...]]


class FilteredMean(NamedTuple):
    """A mean, of one filter where its tasks have several: then ``named`` is the filter's name.

    ``measures`` has, by task, metric and filter.
    """

    title: str
    named: str
    measures: dict[str, tuple[str, str]]


def filtered(mean: Mean, shown: Shown) -> list[FilteredMean]:
    """A mean under each filter, if its tasks have the same ones; else of each task's first."""
    filters = [tuple(name for _, name in shown[task]) for task in mean.tasks]
    alike = len(set(map(frozenset, filters))) == 1
    chosen = [[name] * len(filters) for name in filters[0]] if alike else [[x[0] for x in filters]]
    made = []
    for names in chosen:
        named = ", ".join(dict.fromkeys(names)) if max(map(len, filters)) > 1 else ""
        measures = {
            task: ("score" if mean.by_score else shown[task][0][0], name)
            for task, name in zip(mean.tasks, names, strict=True)
        }
        made.append(FilteredMean(titled(mean.title, named), named, measures))
    return made


def titled(title: str, named: str) -> str:
    """A title with the filter's name, if there is one to name."""
    return f"{title} ({named})" if named else title


def oracles(system: System, part: Layout, shown: Shown) -> Iterator[TableRow]:
    """Of each plane of points: the best point of each task, and the best of the whole table."""
    for plane in dict.fromkeys(row.plane for row in system.points):
        points = [row for row in system.points if row.plane == plane]
        found = {
            (task, measure[1]): there
            for task in part.tasks
            for measure in shown[task]
            if len(there := candidates(points, task, measure)) > 1
        }
        if not found:
            continue
        rows = {at: max(there, key=_goodness)[1] for at, there in found.items()}
        best = {(task, name): row.runs[task] for (task, name), row in rows.items()}
        yield _oracle(
            "Upper bound, each task",
            "oracle by task",
            best,
            [{row.weights for _, row in there} for there in found.values()],
            plane,
        )
        for mean_of in filtered(part.means[-1], shown) if part.means else []:
            yield from _oracle_by_table(points, mean_of, plane)


def _oracle_by_table(
    points: Sequence[TableRow], last: FilteredMean, plane: tuple[str, str]
) -> Iterator[TableRow]:
    there: dict[Weights | None, tuple[Cell, TableRow]] = {}
    for row in points:
        if row.runs.keys() >= last.measures.keys():
            cell = mean([cell_of(row.runs[task], task, *it) for task, it in last.measures.items()])
            if cell is not None:
                there[row.weights] = cell, row
    if len(there) > 1:
        best = max(there.values(), key=_goodness)[1]
        title = f"Upper bound, one point for {last.title}"
        key = titled("oracle by table", last.named)
        oracle = replace(_oracle(title, key, {}, [set(there)], plane), runs=dict(best.runs))
        point = best.weights.label() if best.weights else ""
        yield replace(oracle, detail=f"{oracle.detail}: {point}")


def _oracle(
    title: str,
    key: str,
    best: dict[tuple[str, str], Run],
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
        {task: run for (task, _), run in reversed(best.items())},
        best,
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


def of_all(row: TableRow, same: Sequence[TableRow]) -> TableRow:
    """A row of several tables as one; each has an oracle's point of its own."""
    if row.kind != "oracle":
        return row
    points = row.points if all(other.points == row.points for other in same) else frozenset()
    details = dict.fromkeys(other.detail.partition(":")[0] for other in same)
    return replace(row, points=points, detail="; ".join(details))
