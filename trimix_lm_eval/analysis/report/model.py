"""All that a report says, before anything is written: the same for HTML, Markdown and CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trimix_lm_eval.analysis.report.cells import Table
from trimix_lm_eval.analysis.report.endings import Ending, endings
from trimix_lm_eval.analysis.report.paper import Published, published
from trimix_lm_eval.analysis.report.pictures import Picture, pictures
from trimix_lm_eval.analysis.report.plane import Plane, planes
from trimix_lm_eval.analysis.report.systems import SINGLE, System, systems
from trimix_lm_eval.analysis.report.tables import tables
from trimix_lm_eval.analysis.results import Problem, Run
from trimix_lm_eval.utils.progress import progress_bar


@dataclass(frozen=True)
class Part:
    """What there is to say of one system.

    Attributes:
        title: Its models, in short.
        system: The models and rows.
        tables: Means over languages first.
        planes: By task, what there is of the plane of alpha and beta.
        pictures: Of each plane.
        endings: By table, how generated texts ended.
        published: Published numbers beside ours.
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
    """A report.

    Attributes:
        parts: One for each system.
        runs: All runs, oldest first; a run's number is its place here, from 1.
        problems: Files that could not be used.
    """

    parts: list[Part]
    runs: list[Run]
    problems: list[Problem]

    def number(self, run: Run) -> int:
        """What the report calls a run."""
        return next(i for i, other in enumerate(self.runs, 1) if other is run)


def assemble(runs: Sequence[Run], problems: Sequence[Problem]) -> ReportData:
    """Work everything out.

    Args:
        runs: From `results.read`, oldest first.
        problems: Files that could not be used.
    """
    found = systems(runs)
    parts = [_part(it, title) for it, title in zip(found, titles(found), strict=True)]
    return ReportData(parts, list(runs), list(problems))


def _part(system: System, title: str) -> Part:
    made = tables(system)
    found = planes(system, made)
    drawn = [
        list(pictures(plane))
        for plane in progress_bar(found, "drawing", unit="task", leave=False, delay=1)
    ]
    return Part(
        title,
        system,
        made,
        found,
        drawn,
        endings(made),
        published(system, made),
    )


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
    """How its models were loaded."""
    return _of_sources(system, lambda it: it.get("quantization") or it.get("dtype"))


def _version(system: System) -> str:
    """Which files its models are, in short."""
    return _of_sources(system, lambda it: str(it.get("commit") or it.get("digest"))[:7])


def _of_sources(system: System, tell: Callable[[dict[str, Any]], Any]) -> str:
    found = [str(tell(source)) for run in system.runs for source in run.sources.values()]
    return ", ".join(dict.fromkeys(found))


def _title(system: System) -> str:
    """The last parts of the models' names."""
    names = []
    for role in SINGLE:
        # The same files may have lain in several folders.
        last = dict.fromkeys(path.rstrip("/").rsplit("/", 1)[-1] for path in system.paths(role))
        names += [" / ".join(last)] if last else []
    return " + ".join(names) or "Other models"
