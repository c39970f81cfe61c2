"""Files -> runs and problems."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimix_lm_eval.analysis.results.files import Problem, find, json_of, text_of
from trimix_lm_eval.analysis.results.run import Run
from trimix_lm_eval.analysis.results.scores import MetricValue, mapping, scores
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.paths import printable


def read(places: Sequence[Path]) -> tuple[list[Run], list[Problem]]:
    """The runs of results files, or of folders that are searched for ``results*.json``.

    Returns:
        The runs, oldest first, and what could not be used.
    """
    files: dict[str, Path] = {}
    problems = []
    for place in places:
        there, unread = find(place, ".json", "results") if os.path.isdir(place) else ([place], [])
        problems += unread
        if not there and not unread:
            problems.append(Problem(place, "no results*.json below this folder"))
        # A file counts once, by whatever paths it is reached.
        files.update((_identity(file), file) for file in there)
    found = [_read(path) for path in files.values()]
    runs = [it for it in found if isinstance(it, Run)]
    damaged = [it for it in found if isinstance(it, Problem)]
    return sorted(runs, key=_age), [*damaged, *problems]


def read_some(places: Sequence[Path], verb: str) -> tuple[list[Run], list[Problem]]:
    """As `read`; what a run lost is a problem, too.

    Args:
        places: Files or folders.
        verb: What is done with runs, for the message: ``compared``.

    Raises:
        TrimixError: There is no run.
    """
    runs, problems = read(places)
    if not runs:
        lines = [printable(f"{p.path} {p.what}") for p in problems] or ["no files were named"]
        raise TrimixError(
            f"None of the files can be {verb}:\n  " + "\n  ".join(lines),
            "give results*.json as lm_eval or trimix sweep write them, or a folder of them",
        )
    lossy = [run for run in runs if run.lost]
    return runs, [
        *problems,
        *(Problem(run.path, f"is used but for {'; '.join(run.lost)}") for run in lossy),
    ]


def _identity(path: Path) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:  # of a NUL, which no path can have
        return str(path)


def _age(run: Run) -> tuple[float, str]:
    """When it ran; a run that does not tell is older than all that do, so that it replaces none."""
    return (-math.inf if run.date is None else run.date), str(run.path)


def _read(path: Path) -> Run | Problem:
    try:
        raw = json_of(text_of(path))
    except ValueError as error:
        return Problem(path, str(error))
    if not isinstance(raw, dict) or not isinstance(raw.get("results"), dict):
        return Problem(path, "is JSON, but no results file of lm-eval: it has no 'results'")
    try:
        return _run(path, raw)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        return Problem(path, f"has damaged entries ({type(error).__name__}: {error})")


def _run(path: Path, raw: dict[str, Any]) -> Run | Problem:
    groups = mapping(raw, "groups")
    of_tasks: dict[str, list[MetricValue]] = {}
    lost: list[str] = []
    for task, values in raw["results"].items():
        # A group repeats what its tasks have; one that aggregates is listed under `groups`, too.
        if isinstance(values, dict) and task not in groups:
            found, not_scores = scores(raw, task, values, mapping(raw, "n-samples", task))
            lost += not_scores
            if found:
                of_tasks[task] = found
    if not of_tasks:
        return Problem(path, "; ".join(["holds no numbers of any task", *lost]))
    run = Run(path, raw, of_tasks)
    for name, values in groups.items():
        if isinstance(values, dict):
            lost += _add_group(run, name, values)
    run = replace(run, lost=tuple(lost))
    # Whatever a damaged file would let fail later fails here, where it has a name.
    _ = run.label, run.sources, run.variant, run.grid
    _ = [run.deviations(name) for name in (*run.scores, *run.groups)]
    return run


def _add_group(run: Run, name: str, values: dict[str, Any]) -> list[str]:
    """Take a group in if all of its tasks have numbers; return what is lost, a phrase each."""
    leaves = [run.scores[task][0] for task in run.leaves(name)]
    counts = {"effective": sum(s.n for s in leaves), "original": sum(s.of for s in leaves)}
    # Where the file does not tell how many documents its tasks have, it may have some.
    found, lost = scores(run.raw, name, values, counts if counts["effective"] else {})
    missing = [t for t in run.below(name) if not run.below(t) and t not in run.scores]
    if found and (missing or not leaves):
        whose = ", ".join(missing[:3]) + (" and others" if len(missing) > 3 else "")
        lost.append(f"the group {name} is without numbers of {whose or 'all of its tasks'}")
    elif found:
        run.groups[name] = found
    return lost
