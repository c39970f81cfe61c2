"""Files -> runs and problems."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trimix_lm_eval.analysis.results.results_file import MetricValue, Problem, is_number, mapping
from trimix_lm_eval.analysis.results.run import Run

#: lm-eval's metrics of which less is better. Its older versions do not say so in their results.
_LESS_IS_BETTER = {
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
    "brier_score",
    "ter",
    "likelihood_diff",
    "pct_stereotype",
}


def read(places: Sequence[Path]) -> tuple[list[Run], list[Problem]]:
    """Read results files.

    Args:
        places: Files, or folders that are searched for ``results*.json``.

    Returns:
        The runs, oldest first, and what could not be used.
    """
    files: dict[str, Path] = {}
    empty = []
    for place in places:
        there = below(place) if place.is_dir() else [place]
        if not there:
            empty.append(Problem(place, "no results*.json below this folder"))
        # A file counts once, by whatever paths it is reached.
        files.update((os.path.realpath(file), file) for file in there)
    found = [_read(path) for path in files.values()]
    runs = [it for it in found if isinstance(it, Run)]
    problems = [it for it in found if isinstance(it, Problem)]
    return sorted(runs, key=_age), [*problems, *empty]


def below(folder: Path) -> list[Path]:
    """The results files below a folder, but for hidden ones: there a sweep is still writing."""
    files = ((file, file.relative_to(folder)) for file in folder.rglob("results*.json"))
    return sorted(file for file, at in files if not any(x.startswith(".") for x in at.parts))


def _age(run: Run) -> tuple[float, str]:
    """When it ran; a run that does not tell is older than all that do, so that it replaces none."""
    date = run.raw.get("date")
    return (float(date) if is_number(date) else -math.inf), str(run.path)


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
    scores: dict[str, list[MetricValue]] = {}
    lost: list[str] = []
    for task, values in raw["results"].items():
        # A group repeats what its tasks have; one that aggregates is listed under `groups`, too.
        if isinstance(values, dict) and task not in groups:
            counts = mapping(mapping(raw.get("n-samples")).get(task))
            found = list(_scores(raw, str(task), values, counts))
            lost += _lost(str(task), values)
            if found:
                scores[str(task)] = found
    if not scores:
        return Problem(path, "; ".join(["holds no numbers of any task", *lost]))
    run = Run(path, raw, scores, {}, tuple(lost))
    for name, values in groups.items():
        leaves = [scores[task][0] for task in run.leaves(name)]
        counts = {"effective": sum(s.n for s in leaves), "original": sum(s.of for s in leaves)}
        found = list(_scores(raw, name, values, counts)) if isinstance(values, dict) else []
        if leaves and found:
            run.groups[name] = found
    # Whatever a damaged file would let fail later fails here, where it has a name.
    _ = run.label, run.sources, run.variant, run.grid
    _ = [run.deviations(name) for name in (*scores, *run.groups)]
    return run


def _directions(raw: dict[str, Any], task: str) -> dict[str, bool]:
    """Which way is up, where the file says it: for the task, or in the task's YAML."""
    listed = mapping(mapping(raw.get("configs")).get(task)).get("metric_list")
    metrics = [mapping(metric) for metric in (listed if isinstance(listed, list) else [])]
    in_yaml = {str(metric.get("metric")): metric.get("higher_is_better") for metric in metrics}
    above = mapping(mapping(raw.get("higher_is_better")).get(task))
    told = [*in_yaml.items(), *above.items()]  # the later wins
    return {metric: way for metric, way in told if isinstance(way, bool)}


def _lost(task: str, values: dict[str, Any]) -> Iterator[str]:
    """Metrics that are no number, as a mask or a broken model gives them."""
    for key, value in values.items():
        metric, comma, _ = key.partition(",")
        no_number = isinstance(value, float) and not math.isfinite(value)
        if comma and no_number and not metric.endswith("_stderr"):
            yield f"{metric} of {task} is {value}"


def _scores(
    raw: dict[str, Any], task: str, values: dict[str, Any], counts: dict[str, Any]
) -> Iterator[MetricValue]:
    """The metrics of one task or group: lm-eval writes them as ``metric,filter``."""
    better = _directions(raw, task)
    for key, value in values.items():
        metric, comma, name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not is_number(value):
            continue
        stderr: Any = values.get(f"{metric}_stderr,{name}")
        yield MetricValue(
            task,
            metric,
            name,
            float(value),
            float(stderr) if is_number(stderr) else None,
            better.get(metric, metric not in _LESS_IS_BETTER),
            int(counts.get("effective") or 0),
            int(counts.get("original") or 0),
        )
