"""``contrastive``: what large_ins knows beyond small_base."""

from __future__ import annotations

import dataclasses
from functools import partial

from trimix_lm_eval.fusion.policies.base import Policy, register
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.utils.options import option
from trimix_lm_eval.utils.validation import number


@register
@dataclasses.dataclass(frozen=True)
class Contrastive(Policy):
    """Contrastive decoding: L = (1 + `contrast`) L_li − `contrast` L_sb, which is a point.

    Li et al. 2023, in the form of O'Brien and Lewis 2023. What is written has their plausibility
    mask of 0.1 of large_ins unless ``plausibility`` is given; given answers are scored without it,
    since it leaves most of them no probability at all. Honest: no answer is seen.
    """

    name = "contrastive"
    label = "Contrastive decoding"
    honesty = "label_free"
    honest_when = "always"
    cost = "two sources, no grid"
    plausibility = 0.1
    url = "https://arxiv.org/abs/2210.15097"

    contrast: float = option(
        0.5,
        "number from 0 to 100",
        "How much of small_base is taken away.",
        partial(number, least=0, most=100),
    )

    def points(self) -> tuple[Weights, ...]:
        """The one point."""
        return (Weights(1.0 + self.contrast, 0.0),)
