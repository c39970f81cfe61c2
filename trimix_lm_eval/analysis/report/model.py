"""All that a report says, before anything is written: the same for HTML, Markdown and CSV."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from trimix_lm_eval.analysis.report.cells import Table
from trimix_lm_eval.analysis.report.paper import Published, published
from trimix_lm_eval.analysis.report.pictures import Picture, pictures
from trimix_lm_eval.analysis.report.plane import Plane, planes
from trimix_lm_eval.analysis.report.systems import SINGLE, System, TableRow, systems
from trimix_lm_eval.analysis.report.tables import tables
from trimix_lm_eval.analysis.results import Problem, Run
from trimix_lm_eval.utils.progress import progress_bar


class Ending(NamedTuple):
    """How the texts of one row on one task ended: a task that scores 0 may have been cut off.

    ``counts`` has by ``finish_reason`` (``stop``, ``eos``, ``length``) the number of texts.
    """

    row: TableRow
    column: str
    task: str
    counts: dict[str, int]

    @property
    def length_share(self) -> float:
        """The share of the texts that were as long as was allowed."""
        return self.counts.get("length", 0) / sum(self.counts.values())


@dataclass(frozen=True)
class Part:
    """What there is to say of one system; its tables of means over languages come first.

    Planes of alpha and beta are by task, pictures by plane, endings by table.
    """

    title: str
    system: System
    tables: list[Table]
    planes: list[Plane]
    pictures: list[list[Picture]]
    endings: list[list[Ending]]
    published: list[Published]


@dataclass(frozen=True)
class ReportData:
    """A report: a part for each system; a run's number is its place among all, oldest first."""

    parts: list[Part]
    runs: list[Run]
    problems: list[Problem]

    def number(self, run: Run) -> int:
        """What the report calls a run."""
        return next(i for i, other in enumerate(self.runs, 1) if other is run)


def assemble(runs: Sequence[Run], problems: Sequence[Problem]) -> ReportData:
    """Work everything out that there is to say of runs, which are sorted oldest first."""
    found = systems(runs)
    named = zip(found, titles(found), strict=True)
    parts = [_part(number, it, title) for number, (it, title) in enumerate(named, 1)]
    return ReportData(parts, list(runs), list(problems))


def _part(number: int, system: System, title: str) -> Part:
    made = tables(system)
    found = planes(system, made)
    bar = progress_bar(found, "drawing", unit="task", leave=False, delay=1)
    drawn = [
        [it._replace(name=_file(f"{number}-{at}", plane, it)) for it in pictures(plane)]
        for at, plane in enumerate(bar, 1)
    ]
    seen: set[tuple[str, str, str]] = set()
    endings = [list(_endings(table, seen)) for table in made]
    return Part(title, system, made, found, drawn, endings, published(system, made))


def _file(places: str, plane: Plane, picture: Picture) -> str:
    """The file of a picture: unique, and safe whatever a task is called."""
    return f"{places}-{re.sub(r'[^A-Za-z0-9-]+', '_', plane.task)[:60]}-{picture.kind}.png"


def _endings(table: Table, seen: set[tuple[str, str, str]]) -> Iterator[Ending]:
    """How the texts of each row and task ended; every task and filter is told of once.

    Runs of before this was recorded tell nothing of it and are left out.
    """
    for row, _ in table.rows:
        if row.kind == "oracle":  # each of its tasks is that of another row
            continue
        for column in table.columns:
            task = column.tasks[0]
            counts = row.runs[task].finish_reasons(task) if task in row.runs else {}
            told = row.key, task, column.filter
            if counts and not column.is_mean and told not in seen:
                seen.add(told)
                yield Ending(row, column.title, task, counts)


def titles(found: Sequence[System]) -> list[str]:
    """What to call each system: its models, and in what it differs from others of that name."""
    names = [_title(system) for system in found]
    made = []
    for system, name in zip(found, names, strict=True):
        alike = [other for other, its in zip(found, names, strict=True) if its == name]
        told = [tell for tell in (_precision, _version) if len(set(map(tell, alike))) == len(alike)]
        tell = told[0] if told else lambda it, alike=alike: str(1 + alike.index(it))
        made.append(f"{name} ({tell(system)})" if len(alike) > 1 else name)
    return made


def _precision(system: System) -> str:
    return _of_sources(system, lambda it: it.get("quantization") or it.get("dtype"))


def _version(system: System) -> str:
    return _of_sources(system, lambda it: str(it.get("commit") or it.get("digest"))[:7])


def _of_sources(system: System, tell: Callable[[dict[str, Any]], Any]) -> str:
    found = [str(tell(source)) for run in system.runs for source in run.sources.values()]
    return ", ".join(dict.fromkeys(found))


def _title(system: System) -> str:
    names = []
    for role in SINGLE:
        # The same files may have lain in several folders.
        last = dict.fromkeys(path.rstrip("/").rsplit("/", 1)[-1] for path in system.paths(role))
        names += [" / ".join(last)] if last else []
    return " + ".join(names) or "Other models"
