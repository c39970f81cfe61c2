"""Which exemplars a classification prompt shows, and in which order."""

from __future__ import annotations

import random

from trimix_lm_eval.tasklib.rows import Row


def arrange(pool: list[Row], labels: list[str], per_label: int) -> list[Row]:
    """Order exemplars so that the first ``per_label * len(labels)`` hold `per_label` of each label.

    Args:
        pool: Documents with a `label`, in file order.
        labels: All labels, in the order of the prompt.
        per_label: How many of each label make a round.

    Returns:
        The pool in rounds, each shuffled by a generator seeded with 0.
    """
    of_label = {label: [doc for doc in pool if doc["label"] == label] for label in labels}
    longest = max(map(len, of_label.values()), default=0)
    arranged: list[Row] = []
    for start in range(0, longest, per_label):
        turn = [doc for docs in of_label.values() for doc in docs[start : start + per_label]]
        random.Random(0).shuffle(turn)
        arranged += turn
    return arranged
