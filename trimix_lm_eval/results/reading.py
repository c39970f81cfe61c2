"""Files -> runs and problems."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trimix_lm_eval.results.run import Problem, Run, Score
from trimix_lm_eval.results.values import is_number, mapping


def read(places: Sequence[Path]) -> tuple[list[Run], list[Problem]]:
    """Read results files.

    Args:
        places: Files, or folders that are searched for ``results*.json``.

    Returns:
        The runs, oldest first, and what could not be used.
    """
    runs, problems = [], []
    for path in dict.fromkeys(_files(places)):
        found = _read(path)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            runs.append(found)
    problems += [
        Problem(place, "no results*.json below this folder")
        for place in places
        if place.is_dir() and not any(place.rglob("results*.json"))
    ]
    return sorted(runs, key=lambda r: (str(r.raw.get("date")), str(r.path))), problems


def _files(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        if place.is_dir():
            yield from sorted(place.rglob("results*.json"))
        else:
            yield place


def _read(path: Path) -> Run | Problem:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return Problem(path, f"cannot be read: {error.strerror or error}")
    except UnicodeDecodeError:
        return Problem(path, "is not text")
    except (ValueError, RecursionError) as error:
        if not path.stat().st_size:
            return Problem(path, "is empty")
        return Problem(path, f"is not JSON, or not all of it is there ({error})")
    if not isinstance(raw, dict) or not isinstance(raw.get("results"), dict):
        return Problem(path, "is JSON, but no results file of lm-eval: it has no 'results'")
    try:
        return _run(path, raw)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        return Problem(path, f"has damaged entries ({type(error).__name__}: {error})")


def _run(path: Path, raw: dict[str, Any]) -> Run | Problem:
    groups = mapping(raw.get("groups"))
    scores: dict[str, list[Score]] = {}
    lost: list[str] = []
    for task, values in raw["results"].items():
        # A group repeats what its tasks have; one that aggregates is listed under `groups`, too.
        if isinstance(values, dict) and task not in groups:
            found = list(_scores(raw, str(task), values))
            lost += _lost(str(task), values)
            if found:
                scores[str(task)] = found
    if not scores:
        return Problem(path, "; ".join(["holds no numbers of any task", *lost]))
    run = Run(path, raw, scores, tuple(lost))
    # Whatever a damaged file would let fail later fails here, where it has a name.
    _ = run.label, run.sources, run.variant, run.grid, [run.deviations(task) for task in scores]
    return run


def _lost(task: str, values: dict[str, Any]) -> Iterator[str]:
    """Metrics that are no number, as a mask or a broken model gives them."""
    for key, value in values.items():
        metric, comma, _ = key.partition(",")
        no_number = isinstance(value, float) and not math.isfinite(value)
        if comma and no_number and not metric.endswith("_stderr"):
            yield f"{metric} of {task} is {value}"


def _scores(raw: dict[str, Any], task: str, values: dict[str, Any]) -> Iterator[Score]:
    """The metrics of one task: lm-eval writes them as ``metric,filter``."""
    counts = mapping(mapping(raw.get("n-samples")).get(task))
    better = mapping(mapping(raw.get("higher_is_better")).get(task))
    for key, value in values.items():
        metric, comma, name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not is_number(value):
            continue
        stderr: Any = values.get(f"{metric}_stderr,{name}")
        yield Score(
            task,
            metric,
            name,
            float(value),
            float(stderr) if is_number(stderr) else None,
            better.get(metric) is not False,
            int(counts.get("effective") or 0),
            int(counts.get("original") or 0),
        )
