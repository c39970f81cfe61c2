"""Steps, batch and learning rate for a text and a model, by a rule that is written beside them.

The recipe of the paper's checkpoints is made for a 7B model and hundreds of millions of tokens. It
stays as it is where there is that much; below, these rules of thumb take over. They were tried on
the demo's models only: what held-out text says counts for more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

#: Read so often, the text being so many tokens or more. Up to four times is nearly as good as
#: text that was not read before (Muennighoff et al. 2023). With more, early stopping ends training
#: while the learning rate is still high: eight times over 225 KB of Uyghur was worse than four.
EPOCHS = ((100_000_000, 1), (10_000_000, 2), (0, 4))
#: Optimizer steps that an epoch has at least, if rows are many enough. Of 2.7 M tokens of Telugu
#: batches of 4,096 made more than batches of 16,384 did.
STEPS = 400
_BATCH = 2**20
_LEARNING_RATE, _PARAMETERS, _MOST = 3e-5, 7e9, 2e-3
_END = 30  # the recipe's learning rate ends at a thirtieth


class Suited(NamedTuple):
    """What suits a text and a model, under the names that ``trimix cpt`` has for it."""

    sequence_length: int
    batch_tokens: int
    epochs: int
    learning_rate: float
    min_learning_rate: float
    warmup: float


def suited(tokens: int, parameters: int | None, context: int) -> Suited:
    """Choose for a text of so many tokens and a model; its parameters are None if unknown."""
    length = min(2048, context)
    batch = _BATCH
    while batch > length and tokens / batch < STEPS:
        batch //= 2
    batch = max(batch, length)
    epochs = next(times for least, times in EPOCHS if tokens >= least)
    rate = _LEARNING_RATE
    if parameters:
        rate = min(_MOST, max(rate, rate * math.sqrt(_PARAMETERS / parameters)))
    rate = float(f"{rate:.1g}")
    warmup = 0.01 if batch == _BATCH else 0.05
    return Suited(length, batch, epochs, rate, float(f"{rate / _END:.1g}"), warmup)
