"""The scores of one task or group, and what stands in the place of one and is none.

lm-eval writes ``metric,filter``. In place of a score it may hold a placeholder: ``bypass`` of
``--predict_only`` is 999 whatever the model wrote, RULER's lengths that were not run are -1, and
what could not be worked out is NaN, ``N/A`` or nothing. Each is named, and none is a score.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from trimix_lm_eval.analysis.results.results_file import MetricValue, is_number, mapping

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

#: What metrics of these names can be: shares stand from 0 to 1 or from 0 to 100.
_RANGES = tuple(
    (re.compile(names), low, high)
    for names, low, high in (
        (r"(acc|exact_match|f1|bleu|rouge_?([lL](sum)?|[12]))(_(?!diff).*)?|em|score", 0, 100),
        (r"chrf(\+\+)?|.*_(acc|accuracy|em|exact_match|f1)|accuracy|pass(@|_at_)\d+", 0, 100),
        (r"mcc|matthews_corrcoef", -100, 100),
        (r"bits_per_byte|brier_score|ter|[cw]er|pct_stereotype|\d+", 0, math.inf),
        # exp of a mean NLL, rounded
        (r"((word|byte)_)?perplexity", 1 - 1e-6, math.inf),
    )
)


def scores(
    raw: dict[str, Any], task: str, values: dict[str, Any], counts: dict[str, Any]
) -> tuple[list[MetricValue], list[str]]:
    """The scores of one task or group.

    Args:
        raw: All of the file.
        task: The task or group.
        values: Its part of ``results`` or ``groups``.
        counts: ``effective`` and ``original``: documents it was measured on, and has.

    Returns:
        The scores; and what is none, a phrase each.
    """
    better = _directions(raw, task)
    n, of = _count(counts.get("effective")), _count(counts.get("original"))
    found, lost = [], []
    for metric, name, value in _entries(values):
        why = "of no document" if counts.get("effective") == 0 else no_score(metric, value)
        if why:
            behind = f" (filter {name})" if name != "none" else ""
            lost.append(f"{metric}{behind} of {task} is {why}")
            continue
        stderr: Any = values.get(f"{metric}_stderr,{name}")
        found.append(
            MetricValue(
                task,
                metric,
                name,
                float(value),
                float(stderr) if is_number(stderr) and stderr >= 0 else None,
                better.get(metric, metric not in _LESS_IS_BETTER),
                n,
                of,
            )
        )
    return found, lost


def no_score(metric: str, value: Any) -> str:
    """What a value is that is no score of its metric, as a phrase; empty if it is one."""
    shown = str(value) if isinstance(value, (int, float)) else f"{value!r:.40}"
    if metric == "bypass":
        return f"{shown}, a placeholder: --predict_only scores nothing"
    if not is_number(value):
        return shown if isinstance(value, float) else f"{shown}, which is no number"
    for names, low, high in _RANGES:
        if names.fullmatch(metric) and not low <= value <= high:
            return f"{shown}, which it cannot be: a placeholder, or damaged"
    return ""


def _entries(values: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Metric, filter and value of all that ought to be a score."""
    for key, value in values.items():
        metric, comma, name = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            yield metric, name, value


def _count(value: Any) -> int:
    """A number of documents; 0 if the file does not tell."""
    count = int(value or 0)
    if count < 0:
        raise ValueError(f"{count} documents")
    return count


def _directions(raw: dict[str, Any], task: str) -> dict[str, bool]:
    """Which way is up, where the file says it: for the task, or in the task's YAML."""
    listed = mapping(mapping(raw.get("configs")).get(task)).get("metric_list")
    metrics = [mapping(metric) for metric in (listed if isinstance(listed, list) else [])]
    in_yaml = {str(metric.get("metric")): metric.get("higher_is_better") for metric in metrics}
    above = mapping(mapping(raw.get("higher_is_better")).get(task))
    told = [*in_yaml.items(), *above.items()]  # the later wins
    return {metric: way for metric, way in told if isinstance(way, bool)}
