"""Rows, batches and steps of a run; and which row comes when.

The language and English are mixed in an exact ratio, by a seed. Invariant: the row at place i
depends on the seed and i alone, not on batches, processes or what has been asked for before. In an
epoch every row of the language comes once; among the first n places of an epoch, those of English
are n times their share, rounded down.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from trimix_lm_eval.training.cpt.config import Config


class TrainingPlan(NamedTuple):
    """What a run will do.

    Attributes:
        length: Tokens per row.
        rows: Rows of the language.
        english: Rows of English in an epoch.
        batch: Rows per optimizer step, over all processes; or blocks of rows (see `packing`).
        micro: Rows per forward pass on each process; so many ``accumulation`` make a step.
        steps: Optimizer steps, in so many ``warmup`` the learning rate rises.
        every: Steps from one evaluation to the next.
    """

    length: int
    rows: int
    english: int
    batch: int
    micro: int
    accumulation: int
    steps: int
    warmup: int
    every: int

    @property
    def epochs(self) -> float:
        """How often the text is read."""
        return self.steps * self.batch / (self.rows + self.english)

    @property
    def english_rows(self) -> int:
        """Rows of English that the whole run reads, if none comes twice."""
        return math.ceil(self.epochs) * self.english


def plan(config: Config, length: int, rows: int, world: int, packed: bool = True) -> TrainingPlan:
    """Plan a run on so many rows of the language, by so many processes.

    The rows of a batch do not depend on how many processes there are, if their number divides
    them; else there are as many more as it takes. Forward passes take at most ``micro_batch``
    rows, and all of them equally many; of blocks, which are not `packed` and differ in shape, one.
    """
    english = english_rows(rows, config.ratio) if config.english else 0
    each = max(1, math.ceil(config.batch_tokens // length / world))
    most = min(each, config.micro_batch) if packed else 1
    micro = max(size for size in range(1, most + 1) if each % size == 0)
    batch = each * world
    steps = config.steps or max(1, math.ceil(config.epochs * (rows + english) / batch))
    return TrainingPlan(
        length,
        rows,
        english,
        batch,
        micro,
        each // micro,
        steps,
        math.ceil(config.warmup * steps),
        max(1, round(steps / config.evaluations)),
    )


class MixedRow(NamedTuple):
    """Which row, and whether it is one of English."""

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
