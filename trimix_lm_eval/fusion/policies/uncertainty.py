"""``uncertainty``: per token, the more weight the surer a source is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from trimix_lm_eval.fusion.policies.base import register
from trimix_lm_eval.fusion.policies.pair import PairPolicy
from trimix_lm_eval.utils.options import option
from trimix_lm_eval.utils.validation import number

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclasses.dataclass(frozen=True)
class Uncertainty(PairPolicy):
    """Per token, L = sum_s w_s L_s over `host` and `scorer`, w = softmax(−H / `tau`): by entropy.

    H_s = the entropy of softmax(L_s). Who is sure is taken to know; Ormazabal et al. 2023 (CombLM)
    learn a network on these entropies, this form has nothing to learn. Honest: no answer is seen.
    """

    name = "uncertainty"
    honesty = "label_free"
    honest_when = "always"
    url = "https://arxiv.org/abs/2305.16876"

    tau: float = option(
        1.0,
        "number from 0.001 to 1000",
        "Temperature in nats: near 0 the surer source has all the weight, at 1000 both the same.",
        partial(number, least=1e-3, most=1e3),
    )

    def token_weights(self, logits: Sequence[Tensor], names: Sequence[str]) -> Tensor:
        """Equation above, ``[N, S]``."""
        from trimix_lm_eval.fusion.logits import pair_weights
        from trimix_lm_eval.fusion.mixture import entropies

        pair = self.host, self.scorer
        chosen = (-entropies([logits[names.index(name)] for name in pair]) / self.tau).softmax(
            dim=-1
        )  # [N, 2]
        return pair_weights(chosen[:, 1], names, pair)
