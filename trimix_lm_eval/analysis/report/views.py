"""A table as words for the templates. What is rounded is rounded here, once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from string import ascii_lowercase
from typing import Any

from trimix_lm_eval.analysis.report.cells import Cell, Table
from trimix_lm_eval.analysis.report.model import Ending, ReportData
from trimix_lm_eval.analysis.report.numbers import Scale, p_value, scale, stars
from trimix_lm_eval.analysis.report.plane import gaps
from trimix_lm_eval.analysis.report.systems import KINDS, TableRow
from trimix_lm_eval.analysis.results import Run

#: Columns that stand side by side before a table goes on below.
_WIDTH = 8

View = dict[str, Any]


def table_view(report: ReportData, table: Table, anchor: str) -> View:
    """A table, cut into blocks that fit a page, with footnotes and the tests' details."""
    reasons = dict.fromkeys(
        "; ".join(cell.reasons)
        for _, cells in table.rows
        for cell in cells
        if cell and cell.reasons
    )
    letters = {reason: _letter(place) for place, reason in enumerate(reasons)}
    scales = [_scale(table, place) for place in range(len(table.columns))]
    best = [table.best(place) for place in range(len(table.columns))]
    columns = [
        {
            "title": column.title,
            "full": " ".join(column.tasks),
            "metric": f"{column.metric}{' ' + scales[i].unit if scales[i].unit else ''}",
            "arrow": "↑" if column.higher_is_better else "↓",
            "is_mean": column.is_mean,
            "n": _documents(table, i),
        }
        for i, column in enumerate(table.columns)
    ]
    rows = [
        {
            **_head(report, table, row, cells),
            "cells": [
                cell and _cell(row, cell, scales[i], cell in best[i], letters)
                for i, cell in enumerate(cells)
            ],
        }
        for row, cells in table.rows
    ]
    blocks = _blocks([column.is_mean for column in table.columns])
    return {
        "id": anchor,
        "title": table.title,
        "name": "" if table.name.startswith("across ") else table.name,
        "note": table.note,
        "blocks": [
            {
                "columns": columns[block],
                "rows": [{**row, "cells": row["cells"][block]} for row in rows],
            }
            for block in blocks
        ],
        "reasons": [{"letter": letter, "text": text} for text, letter in letters.items()],
        "details": list(_details(table, scales)),
    }


def _blocks(means: list[bool]) -> list[slice]:
    """Where a wide table is cut: before its means, then by width."""
    whole = len(means)
    edges = [0, whole] if whole <= _WIDTH else sorted({0, whole - sum(means), whole})
    return [
        slice(at, min(at + _WIDTH, stop))
        for start, stop in zip(edges, edges[1:], strict=False)
        for at in range(start, stop, _WIDTH)
    ]


def _documents(table: Table, column: int) -> str:
    found = sorted({sum(cell.n) for cell in table.column(column)} - {0})
    if not found:
        return "n not known"
    return f"n = {found[0]}" if len(found) == 1 else f"n = {found[0]} to {found[-1]}"


def _small(table: Table, row: TableRow) -> str:
    """What tells a row from others of its name; how it departs, only if not all do so alike."""
    alike = len({other.variant for other, _ in table.rows}) == 1
    return ", ".join(text for text in (row.detail, "" if alike else row.variant) if text)


def _head(report: ReportData, table: Table, row: TableRow, cells: tuple[Cell | None, ...]) -> View:
    runs = dict.fromkeys(run for cell in cells if cell for run in cell.runs)
    return {
        "title": row.title,
        "kind": row.kind,
        "group": "single" if KINDS.index(row.kind) < KINDS.index("proxy") else row.kind,
        "small": _small(table, row),
        "models": list(_models(row, list(runs))),
        "runs": sorted(report.number(run) for run in runs),
    }


def _models(row: TableRow, runs: list[Run]) -> Iterator[str]:
    """Of a single model, what it is."""
    if row.kind == "single" and runs:
        role = str(runs[0].policy)
        paths = [str((run.sources.get(role) or {}).get("path") or "") for run in runs]
        names = dict.fromkeys(path.rstrip("/").rsplit("/", 1)[-1] for path in paths if path)
        yield from (name for name in names if name != row.title)


def _cell(row: TableRow, cell: Cell, unit: Scale, best: bool, letters: Mapping[str, str]) -> View:
    return {
        "value": unit.text(cell.value),
        "stderr": "" if cell.stderr is None else unit.text(cell.stderr),
        "stderr_from": cell.stderr_from,
        "n": sum(cell.n) or "not known",
        "delta": _delta(cell, unit),
        "better": cell.better,
        "worse": cell.delta not in (None, 0) and not cell.better,
        "best": best,
        "reference": cell.is_reference,
        "letter": letters.get("; ".join(cell.reasons), ""),
        "point": cell.point if row.kind == "oracle" else "",
        "exact": f"{cell.value!r}",
    }


def _delta(cell: Cell, unit: Scale) -> str:
    """The difference to the best single model, with its stars; ° where it was not tested."""
    if cell.delta is None:
        return ""
    return unit.signed(cell.delta) + (stars(cell.test.p) if cell.test else "°")


def _details(table: Table, scales: list[Scale]) -> Iterator[View]:
    for i, column in enumerate(table.columns):
        for row, cells in table.rows:
            cell = cells[i]
            if cell is None or cell.is_reference:
                continue
            test, unit = cell.test, scales[i]
            yield {
                "column": column.title,
                "row": row.title,
                "small": _small(table, row),
                "reference": cell.reference.title if cell.reference else "",
                "n": sum(cell.n) or "",
                "delta": "" if cell.delta is None else unit.signed(cell.delta),
                "interval": f"{unit.signed(test.low)} to {unit.signed(test.high)}" if test else "",
                "p": p_value(test.p) if test else "",
                "note": cell.why_not,
            }


def _scale(table: Table, column: int) -> Scale:
    values = [cell.value for cell in table.column(column)]
    return scale(table.columns[column].metric, values)


def _letter(place: int) -> str:
    letters = ascii_lowercase
    return letters[place] if place < 26 else letters[place // 26 - 1] + letters[place % 26]


def ending_views(table: Table, found: list[Ending]) -> Iterator[View]:
    """The share of texts that ran into the length limit: tables like the one they belong to."""
    texts = {
        (it.row.key, it.column): f"{100 * it.length_share:.0f} % of {sum(it.counts.values())}"
        for it in found
    }
    return _beside(table, texts)


def gap_views(table: Table) -> Iterator[View]:
    """What rows leave to the oracle: tables like the one that they belong to."""
    units = {column.title: _scale(table, place) for place, column in enumerate(table.columns)}
    texts = {(it.row.key, it.column): units[it.column].signed(it.gap) for it in gaps(table)}
    return _beside(table, texts)


def _beside(table: Table, texts: Mapping[tuple[str, str], str]) -> Iterator[View]:
    """A table with other texts in its cells, by key of the row and title of the column."""
    heads = [c for c in table.columns if any((row.key, c.title) in texts for row, _ in table.rows)]
    rows = [row for row, _ in table.rows if any((row.key, c.title) in texts for c in heads)]
    for block in _blocks([c.is_mean for c in heads]):
        yield {
            "title": table.title,
            "columns": [c.title for c in heads[block]],
            "rows": [
                {
                    "title": row.title,
                    "small": _small(table, row),
                    "cells": [texts.get((row.key, c.title), "") for c in heads[block]],
                }
                for row in rows
            ],
        }
