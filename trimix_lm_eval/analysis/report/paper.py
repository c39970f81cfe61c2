"""The paper's numbers beside ours, where models and tasks are exactly the same (`paper.yaml`).

The same means: Hub ids equal letter for letter, and all tasks of a column in all four languages;
large_ins may have been run as a model of lm-eval's own.
What differs nonetheless (quantization, a limit) is said beside the number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from trimix_lm_eval.analysis.report.cells import Cell, Column, Table
from trimix_lm_eval.analysis.report.layout import language, leaves
from trimix_lm_eval.analysis.report.systems import System, TableRow
from trimix_lm_eval.analysis.results import Run
from trimix_lm_eval.fusion.weights import PAPER_GRID, SOURCES


class Published(NamedTuple):
    """A published number and ours, in the published unit.

    Attributes:
        citation: Where the published number is from.
        what: The column or task.
        cell: What ours is from.
        note: What differs: how our models were loaded, and why ours is not comparable.
    """

    citation: str
    row: TableRow
    what: str
    ours: float
    cell: Cell
    published: float
    note: str


#: Metrics that are published in percent and recorded from 0 to 1.
_SHARES = ("acc", "rouge_l", "score")


def published(system: System, tables: Sequence[Table]) -> list[Published]:
    """All published numbers that a system has counterparts for."""
    book = _book()
    numbers = [it for table in tables for it in _numbers(table)]
    found = []
    for entry in book["means"]:
        for row, column, cell in numbers:
            value = entry["rows"].get(_name(row), {}).get(column.title)
            if value is None or set(column.tasks) != set(_tasks(book, column.title)):
                continue
            if _same(cell, entry):
                found.append(_published("paper", book, row, column.title, cell, value))
    for entry in book["tasks"]:
        for row, column, cell in numbers:
            value = None if column.is_mean else entry["scores"].get(column.tasks[0])
            if value is not None and _name(row) == entry["row"] and _same(cell, entry):
                found.append(_published("rep", book, row, column.tasks[0], cell, value))
    return found


def citations() -> dict[str, str]:
    """Of all numbers in `paper.yaml`."""
    return dict(_book()["citations"])


def _numbers(table: Table) -> Iterator[tuple[TableRow, Column, Cell]]:
    for row, cells in table.rows:
        for column, cell in zip(table.columns, cells, strict=True):
            if cell is not None:
                yield row, column, cell


def _name(row: TableRow) -> str:
    """What `paper.yaml` calls a row; an oracle is one if it chose from the paper's points.

    What lm-eval's own models may be is large_ins: `_same` looks whether it is the one.
    """
    if row.kind == "other":
        return "large_ins"
    name = row.key.removesuffix(f" [{row.variant}]")
    is_oracle = name == "oracle by task" and row.points == set(PAPER_GRID)
    return "oracle" if is_oracle else name


def _tasks(book: dict[str, Any], column: str) -> Iterator[str]:
    """The tasks of a published column in all languages."""
    for code in book["languages"]:
        yield from leaves(book["columns"][column].replace("<l>", code))


def _same(cell: Cell, entry: dict[str, Any]) -> bool:
    """Whether all runs behind a number are of the published sources, and of nothing else."""
    return all(_sources_match(run, entry) for run in cell.runs)


def _sources_match(run: Run, entry: dict[str, Any]) -> bool:
    if not run.trimix:
        return run.is_named_model({entry["large_ins"]})
    sources = run.sources
    codes = {language(task) for task in run.scores} - {""}
    if not sources or not codes:
        return False
    wanted = [
        {role: entry[role].replace("<l>", code) for role in SOURCES if role in entry}
        for code in codes
    ]
    return all(
        source.get("path") == paths.get(role)
        for paths in wanted
        for role, source in sources.items()
    )


def _published(
    source: str, book: dict[str, Any], row: TableRow, what: str, cell: Cell, value: float
) -> Published:
    loaded = {
        f"{it.get('dtype')}{', ' + str(it['quantization']) if it.get('quantization') else ''}"
        for run in cell.runs
        for it in run.sources.values()
    }
    others = [run.config.get("model_dtype") for run in cell.runs if not run.trimix]
    loaded |= {str(dtype or "unknown precision").removeprefix("torch.") for dtype in others}
    note = "; ".join([f"ours in {' and '.join(sorted(loaded))}", *cell.reasons])
    citation = " ".join(book["citations"][source].split())
    ours = cell.value * (100 if cell.metric in _SHARES else 1)
    return Published(citation, row, what, ours, cell, float(value), note)


@cache
def _book() -> dict[str, Any]:
    text = (Path(__file__).parent / "paper.yaml").read_text(encoding="utf-8")
    book: dict[str, Any] = yaml.safe_load(text)
    return book
