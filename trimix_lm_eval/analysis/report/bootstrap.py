"""The paired bootstrap: how sure a difference between two rows is.

For each task the documents are drawn with replacement, 10,000 times, and every row is scored on
the same draws (Efron and Tibshirani 1993; Koehn 2004). A difference of means over tasks draws the
documents of each task on their own.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from trimix_lm_eval.analysis.report.statistics import Statistics

if TYPE_CHECKING:
    import numpy as np

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
        low: Of the 95 % interval of the difference (percentiles).
        high: Its other end.
    """

    p: float
    low: float
    high: float


def generator(task: str) -> np.random.Generator:
    """Where the draws of a task come from: row r of ``integers(N, size=(R, N))`` is draw r."""
    import numpy as np

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
    import numpy as np

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
    """Test a difference.

    Args:
        ours: Scores on the draws, ``[R]``.
        reference: Those of another row on the same draws.
    """
    import numpy as np

    difference = ours - reference
    # Equal answers sum up to differences of rounding, which are on neither side of 0.
    difference[np.abs(difference) < 1e-12] = 0.0
    # One is added to the counts: a bootstrap never shows that p is 0 (Davison and Hinkley 1997).
    below = (1 + int((difference <= 0).sum())) / (1 + len(difference))
    above = (1 + int((difference >= 0).sum())) / (1 + len(difference))
    low, high = np.percentile(difference, [2.5, 97.5])
    return Test(min(1.0, 2 * min(below, above)), float(low), float(high))
