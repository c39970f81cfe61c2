"""Ranks of policies, and Holm's correction of p-values for their number."""

from __future__ import annotations

from collections.abc import Sequence

#: Numbers that differ by no more than this are equal: by more, sums in another order do not differ.
EQUAL = 1e-9


def holm(p: Sequence[float]) -> list[float]:
    """The p-values of several tests, corrected for their number (Holm 1979).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none becomes smaller than
    one before it, or larger than 1. At a level of 0.05, the chance that any true null hypothesis
    is rejected is then at most 0.05, however the tests depend on each other.

    Returns:
        In the order given.
    """
    found = [0.0] * len(p)
    largest = 0.0
    for before, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - before) * p[place]))
        found[place] = largest
    return found


def ranks(goodness: Sequence[float]) -> list[float]:
    """The rank of each number, 1 for the highest; equal numbers have the mean of their ranks."""
    found = []
    for mine in goodness:
        better = sum(other > mine + EQUAL for other in goodness)
        alike = sum(abs(other - mine) <= EQUAL for other in goodness)
        found.append(1 + better + (alike - 1) / 2)
    return found
