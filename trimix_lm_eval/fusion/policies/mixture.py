"""``mixture``: probabilities instead of logits, with one weight per source for the whole run."""

from __future__ import annotations

import dataclasses
from functools import partial

from trimix_lm_eval.fusion.policies.base import MixturePolicy, register
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.options import option
from trimix_lm_eval.utils.validation import number

_share = partial(number, least=0, most=1)


@register
@dataclasses.dataclass(frozen=True)
class FixedMixture(MixturePolicy):
    """One mixture for the run: p = `alpha` p_li + `beta` p_sc + (1 - alpha - beta) p_sb.

    p_s = softmax(L_s), of each source; with equal shares the ensemble of GaC (Yu et al. 2024) on
    one vocabulary. Honest when the weights were chosen on other data.
    """

    name = "mixture"
    honesty = "label_free"
    honest_when = "if the weights come from other data"
    cost = "the sources whose weight is not 0; a softmax of each"
    url = "https://arxiv.org/abs/2406.12585"

    alpha: float = option(0.5, "number from 0 to 1", "Share of large_ins.", _share)
    beta: float = option(
        0.5, "number from 0 to 1", "Share of small_cpt; small_base has what is left.", _share
    )

    def __post_init__(self) -> None:
        """Check the options, and that the shares are no more than a whole."""
        super().__post_init__()
        if self.alpha + self.beta > 1 + 1e-9:
            raise TrimixError(
                f"alpha={self.alpha:g} and beta={self.beta:g} are shares of more than 1.",
                "probabilities have no negative weights: choose alpha + beta <= 1",
            )

    def points(self) -> tuple[Weights, ...]:
        """The one point."""
        return (Weights(self.alpha, self.beta),)
