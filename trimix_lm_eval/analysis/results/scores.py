"""The scores of one task or group, and what stands in the place of one and is none.

lm-eval writes ``metric,filter``. In place of a score it may hold a placeholder: ``bypass`` of
``--predict_only`` is 999 whatever the model wrote, RULER's lengths that were not run are -1, and
what could not be worked out is NaN, ``N/A`` or nothing. Each is named, and none is a score.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple, TypeGuard

#: lm-eval's metrics of which less is better. Its older versions do not say so in their results.
_LESS_IS_BETTER = {
    *("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score"),
    *("ter", "likelihood_diff", "pct_stereotype"),
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


class MetricValue(NamedTuple):
    """One number of one task or group.

    Attributes:
        metric: Without its filter.
        filter: lm-eval's, mostly ``none``.
        value: In the metric's own unit.
        stderr: Its standard error; None where lm-eval gives none.
        n: Documents it was measured on; 0 if unknown.
        of: Documents that the task has; 0 if unknown.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool
    n: int
    of: int


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number, and no more than a float can hold."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def mapping(value: Any, *keys: str) -> dict[str, Any]:
    """The object below some keys of what anybody may have written; empty if there is none."""
    for key in keys:
        value = mapping(value).get(key)
    return value if isinstance(value, dict) else {}


def scores(
    raw: dict[str, Any], task: str, values: dict[str, Any], counts: dict[str, Any]
) -> tuple[list[MetricValue], list[str]]:
    """The scores of one task or group; and what is none, a phrase each.

    Args:
        raw: All of the file.
        task: The task or group.
        values: Its part of ``results`` or ``groups``.
        counts: ``effective`` and ``original``: documents it was measured on, and has.
    """
    better = _directions(raw, task)
    n, of = _count(counts.get("effective")), _count(counts.get("original"))
    found, lost = [], []
    for key, value in values.items():
        metric, comma, name = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        why = "of no document" if counts.get("effective") == 0 else no_score(metric, value)
        if why:
            behind = f" (filter {name})" if name != "none" else ""
            lost.append(f"{metric}{behind} of {task} is {why}")
            continue
        given: Any = values.get(f"{metric}_stderr,{name}")
        stderr = float(given) if is_number(given) and given >= 0 else None
        up = better.get(metric, metric not in _LESS_IS_BETTER)
        found.append(MetricValue(task, metric, name, float(value), stderr, up, n, of))
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


def _count(value: Any) -> int:
    """A number of documents; 0 if the file does not tell."""
    count = int(value or 0)
    if count < 0:
        raise ValueError(f"{count} documents")
    return count


def _directions(raw: dict[str, Any], task: str) -> dict[str, bool]:
    """Which way is up, where the file says it: for the task, or in the task's YAML."""
    listed = mapping(raw, "configs", task).get("metric_list")
    metrics = [mapping(metric) for metric in (listed if isinstance(listed, list) else [])]
    in_yaml = {str(metric.get("metric")): metric.get("higher_is_better") for metric in metrics}
    told = [*in_yaml.items(), *mapping(raw, "higher_is_better", task).items()]  # the later wins
    return {metric: way for metric, way in told if isinstance(way, bool)}
