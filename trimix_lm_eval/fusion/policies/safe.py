"""``safe``: the host alone, except where the scorer does not share its favourite."""

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
class Safe(PairPolicy):
    """Per token, p = p_host where both believe in its favourite, else (p_host + p_scorer) / 2.

    Both believe where the mean of p_s(argmax p_host) > `consensus`: beyond half, the favourite is
    that of the mixture, too (Yun et al. 2025, SAFE). Their other rule is for sources with different
    tokens, and their sharpening for words in pieces; neither applies here. Honest: no answer is
    seen.
    """

    name = "safe"
    label = "SAFE"
    honesty = "label_free"
    honest_when = "if host and scorer were not chosen on the test set"
    url = "https://arxiv.org/abs/2510.15346"

    consensus: float = option(
        0.5,
        "number from 0 to 1",
        "The mean probability of the host's favourite beyond which the host is alone.",
        partial(number, least=0, most=1),
    )

    def token_weights(self, logits: Sequence[Tensor], names: Sequence[str]) -> Tensor:
        """Nothing or a half to the scorer, ``[N, S]``."""
        from trimix_lm_eval.fusion.logits import log_prob, pair_weights

        pair = self.host, self.scorer
        host, scorer = (logits[names.index(name)] for name in pair)  # [N, V]
        favourite = host.argmax(dim=-1)  # [N]
        belief = (log_prob(host, favourite).exp() + log_prob(scorer, favourite).exp()) / 2
        return pair_weights((belief <= self.consensus).to(host.dtype) / 2, names, pair)

    def fuse(self, logits: Sequence[Tensor], weights: Tensor, names: Sequence[str]) -> Tensor:
        """Probabilities, not logits, are averaged."""
        from trimix_lm_eval.fusion.mixture import mix

        return mix(logits, weights)
