"""Rows, batches and steps of a run, from the config and the size of the text."""

from __future__ import annotations

import math
from typing import NamedTuple

from trimix_lm_eval.training.cpt.config import Config
from trimix_lm_eval.training.cpt.mixing import english_rows


class TrainingPlan(NamedTuple):
    """What a run will do.

    Attributes:
        length: Tokens per row.
        rows: Rows of the language.
        english: Rows of English in an epoch.
        batch: Rows per optimizer step, over all processes.
        micro: Rows per forward pass on each process.
        accumulation: Forward passes per step, on each process.
        steps: Optimizer steps.
        warmup: Steps in which the learning rate rises.
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


def plan(config: Config, length: int, rows: int, world: int) -> TrainingPlan:
    """Plan a run.

    The rows of a batch do not depend on how many processes there are, if their number divides
    them; else there are as many more as it takes. Forward passes take at most ``micro_batch``
    rows, and all of them equally many.

    Args:
        config: Of the run.
        length: Tokens per row.
        rows: Rows of the language.
        world: Processes.
    """
    english = english_rows(rows, config.ratio) if config.english else 0
    each = max(1, math.ceil(config.batch_tokens // length / world))
    micro = max(size for size in range(1, min(each, config.micro_batch) + 1) if each % size == 0)
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
