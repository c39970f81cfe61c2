"""Which source is to blame where numbers came out that are none; else nothing comes here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch

from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.model_runner import Ensemble, LogitView
from trimix_lm_eval.utils.errors import TrimixError


class FusedNotFinite(TrimixError):
    """What is made of logits is not finite, and they are."""


def explain_not_finite(ensemble: Ensemble, ids: Sequence[int]) -> NoReturn:
    """Run tokens again, alone, to name the source whose logits are not finite.

    Raises:
        NotFinite: This one.
        FusedNotFinite: There is none.
    """
    batch = InputBatch.empty(ensemble, 1)
    tokens = torch.tensor([list(ids)])
    valid = torch.ones_like(tokens, dtype=torch.bool)
    for _, _, hidden in batch.feed(tokens, valid, valid):
        LogitView(ensemble, hidden).check(torch.zeros(1, dtype=torch.bool))
    raise FusedNotFinite(
        "What is made of the logits is not finite, though the logits of all sources are.",
        "choose policy=fixed, or report the models that you use",
    )
