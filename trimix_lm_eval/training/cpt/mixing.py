"""Which row comes when: the language and English in an exact ratio, by a seed.

Invariant: the row at place i depends on the seed and i alone, not on batches, processes or what
has been asked for before. In an epoch every row of the language comes once; among the first n
places of an epoch, those of English are n times their share, rounded down.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np


class MixedRow(NamedTuple):
    """A row of one of the two texts.

    Attributes:
        english: Whether it is one of English.
        number: Which.
    """

    english: bool
    number: int


class Mixture:
    """The order of all rows, epoch after epoch.

    Args:
        rows: How many of the language.
        english: How many there are of English; 0 mixes nothing.
        ratio: Rows of the language for one of English.
        seed: Of the order.
    """

    def __init__(self, rows: int, english: int, ratio: Fraction, seed: int) -> None:
        self.rows, self.english, self.seed = rows, english, seed
        self.english_per_epoch = english_rows(rows, ratio) if english else 0
        self.per_epoch = rows + self.english_per_epoch
        self._orders: dict[bool, tuple[int, np.ndarray]] = {}

    def __getitem__(self, place: int) -> MixedRow:
        """The row at a place, counted from 0 over all epochs."""
        epoch, within = divmod(place, self.per_epoch)
        before = within * self.english_per_epoch // self.per_epoch
        if (within + 1) * self.english_per_epoch // self.per_epoch == before:
            return MixedRow(False, self._shuffled(False, epoch, within - before, self.rows))
        # English goes on where the last epoch ended; when it is used up it begins again.
        again, index = divmod(epoch * self.english_per_epoch + before, self.english)
        return MixedRow(True, self._shuffled(True, again, index, self.english))

    def _shuffled(self, english: bool, time: int, index: int, count: int) -> int:
        """The row at an index of an order, which is another one each time."""
        kept, order = self._orders.get(english, (-1, np.empty(0, dtype=np.int64)))
        if kept != time:
            order = np.random.default_rng([self.seed, english, time]).permutation(count)
            self._orders[english] = (time, order)
        return int(order[index])


def english_rows(rows: int, ratio: Fraction) -> int:
    """How many rows of English go with so many of the language, at least one."""
    return max(1, round(rows / ratio))
