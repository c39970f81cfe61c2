"""The paired bootstrap: how sure a difference between two rows is.

For each task the documents are drawn with replacement, 10,000 times, and every row is scored on
the same draws (Efron and Tibshirani 1993; Koehn 2004). A difference of means over tasks draws the
documents of each task on their own.

Every metric that is handled here is a function of sums of a few numbers per document (chrF++: of
n-gram counts), so that a resample of the documents costs one product of matrices. Which function
belongs to a metric is not guessed from its name: one is taken only if, over all documents, it
gives the very number that the results file holds.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from trimix_lm_eval.analysis.results import MetricValue, Run

RESAMPLES = 10_000
SEED = 1234

#: On fewer documents nothing is tested: resamples of one document that only one row gets right
#: never contradict it, and p would be as small as of a thousand such documents.
LEAST = 20

#: Draws times documents that are held at once: some tens of megabytes.
_CHUNK = 4_000_000


class Test(NamedTuple):
    """A difference and what the resamples say about it.

    Attributes:
        p: Two-sided: twice the share of resamples on the other side of 0, at most 1.
        low: Of the 95 % interval of the difference (percentiles); ``high`` is its other end.
    """

    p: float
    low: float
    high: float


def generator(task: str) -> np.random.Generator:
    """Where the draws of a task come from: row r of ``integers(N, size=(R, N))`` is draw r."""
    return np.random.default_rng([SEED, zlib.crc32(task.encode())])


def resample(
    task: str, rows: Mapping[str, Statistics], resamples: int = RESAMPLES
) -> dict[str, np.ndarray]:
    """Score rows on the same draws of a task's documents.

    Args:
        task: Its name chooses the draws.
        rows: Statistics by row, all over the same documents.
        resamples: How many draws.

    Returns:
        By row, the metric on each draw, ``[R]``.
    """
    if not rows:
        return {}
    n = len(next(iter(rows.values())).documents)
    # One matrix of all rows' numbers: each draw's sums come from one product.
    numbers = np.concatenate([row.numbers for row in rows.values()], axis=1)  # [N, sum K]
    draws = generator(task)
    step = max(1, _CHUNK // n)
    parts = []
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = draws.integers(n, size=(size, n)) + np.arange(size)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        parts.append(counts.astype(float) @ numbers)
    sums = np.concatenate(parts)  # [R, sum K]
    found, at = {}, 0
    for name, row in rows.items():
        width = row.numbers.shape[1]
        with np.errstate(all="ignore"):
            found[name] = row.finish(sums[:, at : at + width], n)
        at += width
    return found


def compare(ours: np.ndarray, reference: np.ndarray) -> Test:
    """Test the difference of two rows by their scores on the same draws, ``[R]`` each."""
    difference = ours - reference
    # Equal answers sum up to differences of rounding, which are on neither side of 0.
    difference[np.abs(difference) < 1e-12] = 0.0
    # One is added to the counts: a bootstrap never shows that p is 0 (Davison and Hinkley 1997).
    below = (1 + int((difference <= 0).sum())) / (1 + len(difference))
    above = (1 + int((difference >= 0).sum())) / (1 + len(difference))
    low, high = np.percentile(difference, [2.5, 97.5])
    return Test(min(1.0, 2 * min(below, above)), float(low), float(high))


#: Sums over documents ``[R, K]`` and how many documents -> the metric ``[R]``.
Finish = Callable[[np.ndarray, int], np.ndarray]

#: How far the samples' value may be from the results file's, relative to it.
TOLERANCE = 1e-6


class Statistics(NamedTuple):
    """A metric of one task, as sums over documents.

    Attributes:
        documents: What identifies each document, in order.
        numbers: Of each document, ``[N, K]``.
        finish: From sums of rows to the metric.
    """

    documents: tuple[tuple[int, str], ...]
    numbers: np.ndarray
    finish: Finish


def read_samples(run: Run, task: str) -> list[dict[str, Any]] | str:
    """The logged samples of a task, or why there are none, in a phrase."""
    try:
        samples = run.samples(task)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        return f"not available: the samples cannot be read ({type(error).__name__}: {error})"
    return samples or "no samples"


def statistics(samples: list[dict[str, Any]] | str, score: MetricValue) -> Statistics | str:
    """The statistics of a number that `read_samples` has samples of, or why there are none."""
    if isinstance(samples, str):
        return samples
    try:
        of_filter = [s for s in samples if s.get("filter", score.filter) == score.filter]
        documents = tuple((int(s["doc_id"]), str(s.get("doc_hash", ""))) for s in of_filter)
        values = [s[score.metric] for s in of_filter]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return f"not available: the samples hold no {score.metric}"
    if not values:
        return f"not available: no samples of the filter {score.filter}"
    if score.n and len(values) != score.n:
        return f"not available: {len(values)} samples of {score.n} documents"
    try:
        with np.errstate(all="ignore"):  # of candidates that are not the metric
            return _fitting(documents, values, score)
    except (TypeError, ValueError):
        return f"not available: samples of {score.metric} are of no known kind"


def _fitting(
    documents: tuple[tuple[int, str], ...], values: Sequence[Any], score: MetricValue
) -> Statistics | str:
    found = None
    for numbers, finish in _candidates(values, score.metric):
        found = float(finish(numbers.sum(0, keepdims=True), len(values))[0])
        if math.isclose(found, score.value, rel_tol=TOLERANCE, abs_tol=1e-9):
            return Statistics(documents, numbers, finish)
    if found is None:
        return f"not available: samples of {score.metric} are of no known kind"
    return (
        f"not available: {len(values)} samples give {found:g}, "
        f"the results file says {score.value:g}"
    )


def _candidates(values: Sequence[Any], metric: str) -> Iterator[tuple[np.ndarray, Finish]]:
    """What a metric may be, given what its samples look like; the likeliest first."""
    if all(isinstance(value, (int, float)) for value in values):
        numbers = np.array(values, dtype=float)[:, None]
        yield numbers, lambda sums, n: sums[:, 0] / n
        yield numbers, lambda sums, n: np.exp(-sums[:, 0] / n)  # lm-eval's `perplexity`
    elif all(_pair(value, (int, float)) for value in values):
        numbers = np.array(values, dtype=float)
        yield numbers, lambda sums, n: -sums[:, 0] / sums[:, 1] / math.log(2)  # bits_per_byte
        yield numbers, lambda sums, n: np.exp(-sums[:, 0] / sums[:, 1])  # word_, byte_perplexity
    elif all(_pair(value, str) for value in values):
        if metric.startswith("f1"):
            yield _labels(values), _weighted_f1
            return
        for options in (
            {"word_order": 2, "lowercase": True},  # TriMix's and our tasks'
            {"word_order": 2},  # lm-eval's chrf++
            {"word_order": 0},  # lm-eval's chrf
        ):
            numbers, order = _ngrams(values, options)
            yield numbers, partial(_f_score, order=order, most=100)
            yield numbers, partial(_f_score, order=order, most=1)  # our `score`


def _pair(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(x, kind) for x in value)


def _ngrams(pairs: Sequence[Any], options: dict[str, Any]) -> tuple[np.ndarray, int]:
    """Count n-grams as sacrebleu does, for each document: in hypothesis, reference and both."""
    from sacrebleu.metrics import CHRF

    metric = CHRF(**options)
    references, hypotheses = zip(*pairs, strict=True)
    counts = metric._extract_corpus_statistics(list(hypotheses), [list(references)])
    return np.array(counts, dtype=float), metric.order


def _f_score(sums: np.ndarray, n: int, order: int, most: float) -> np.ndarray:
    """Compute chrF from summed counts as sacrebleu does: beta 2, effective order."""
    counts = sums.reshape(len(sums), order, 3)
    predicted, true, both = counts[..., 0], counts[..., 1], counts[..., 2]  # [R, orders]
    used = (predicted > 0) & (true > 0)
    orders = np.maximum(used.sum(1), 1)
    precision = np.where(used, both / np.maximum(predicted, 1), 0).sum(1) / orders
    recall = np.where(used, both / np.maximum(true, 1), 0).sum(1) / orders
    low = 4 * precision + recall
    score: np.ndarray = most * 5 * precision * recall / np.where(low > 0, low, 1)
    return score


def _labels(pairs: Sequence[Any]) -> np.ndarray:
    """Of each document and label: is it the true one, is it the answer, is it both; [N, 3 L]."""
    labels = sorted({gold for gold, _ in pairs})
    rows = [[(g == x, a == x, g == x == a) for x in labels] for g, a in pairs]
    return np.array(rows, dtype=float).reshape(len(pairs), -1)


def _weighted_f1(sums: np.ndarray, n: int) -> np.ndarray:
    """F1 of each label, weighted by how often it is the true one."""
    counts = sums.reshape(len(sums), -1, 3)
    true, predicted, both = counts[..., 0], counts[..., 1], counts[..., 2]
    score: np.ndarray = (true * 2 * both / np.maximum(true + predicted, 1)).sum(1) / n
    return score
