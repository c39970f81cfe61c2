"""Questions none of whose options has any probability: lm-eval takes the first option there.

A plausibility mask gives most tokens none, which is fine for text that is written, since some are
left. Of given options, it may leave none; the accuracy is then that of the first one, whatever the
models say, and 1 on a task that begins with documents of one class.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from trimix_lm_eval.analysis.report.bootstrap import read_samples
from trimix_lm_eval.analysis.report.systems import TableRow

#: With a larger share of such questions, a row's number says little of its policy.
MOST = 0.05


class Undecided(NamedTuple):
    """How many of a task's documents are such questions."""

    task: str
    open: int
    of: int


def undecided(row: TableRow) -> list[Undecided]:
    """The tasks of a row on which more than `MOST` of the documents are such questions.

    Only rows under a mask are looked at, and only where samples are there.
    """
    found = []
    for task, run in row.runs.items():
        samples = read_samples(run, task) if run.trimix.get("plausibility") else []
        if isinstance(samples, list) and samples:
            count = sum(map(_is_undecided, samples))
            if count > MOST * len(samples):
                found.append(Undecided(task, count, len(samples)))
    return found


def _is_undecided(sample: dict[str, Any]) -> bool:
    """Whether a sample has several options, all of log-likelihood minus infinity."""
    options = sample.get("filtered_resps")
    try:
        values = [float(value) for value, _ in options or []]
    except (TypeError, ValueError):  # texts, or a number alone
        return False
    return len(values) > 1 and all(value == float("-inf") for value in values)
