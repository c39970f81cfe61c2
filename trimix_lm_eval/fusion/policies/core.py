"""``core``: tokens that both sources find as likely, of sources that are sure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from trimix_lm_eval.fusion.policies.base import register
from trimix_lm_eval.fusion.policies.pair import PairPolicy
from trimix_lm_eval.utils.options import option
from trimix_lm_eval.utils.validation import number, whole

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclasses.dataclass(frozen=True)
class Core(PairPolicy):
    """Per token, p ∝ w_host p_host + w_scorer c p_scorer: consistency c of tokens, w of models.

    c(v) = (exp(−`sharpness` d) − exp(−`sharpness`)) / (1 − exp(−`sharpness`)), over its mean on the
    `best` tokens of either; d = |p_host(v) − p_scorer(v)| / 2. w = 1 / H(p_s) over their sum, of
    the host at least half; their agreement sum_v c(v) is a factor of both (Zeng et al. 2025, with
    the kernel and constants of their code). They drop all tokens but the best ones; here the
    others stay, so that every option has a score. Honest: no answer is seen.
    """

    name = "core"
    label = "CoRE"
    honesty = "label_free"
    honest_when = "if host and scorer were not chosen on the test set"
    url = "https://arxiv.org/abs/2510.13855"

    sharpness: float = option(
        2.0,
        "number from 0.001 to 50",
        "How fast the consistency falls with the distance of two probabilities.",
        partial(number, least=1e-3, most=50),
    )
    best: int = option(
        10, "whole number >= 1", "How many tokens of each source.", partial(whole, least=1)
    )

    def token_weights(self, logits: Sequence[Tensor], names: Sequence[str]) -> Tensor:
        """The weights w above, ``[N, S]``."""
        from trimix_lm_eval.fusion.logits import pair_weights
        from trimix_lm_eval.fusion.mixture import entropies

        pair = self.host, self.scorer
        trust = 1.0 / entropies([logits[names.index(name)] for name in pair]).clamp_min(
            1e-12
        )  # [N, 2]
        return pair_weights((trust[:, 1] / trust.sum(dim=1)).clamp_max(0.5), names, pair)

    def fuse(self, logits: Sequence[Tensor], weights: Tensor, names: Sequence[str]) -> Tensor:
        """The equation above, as logarithms: the softmax normalises."""
        import torch

        pair = [logits[names.index(name)] for name in (self.host, self.scorer)]
        host, scorer = (x.log_softmax(dim=-1) for x in pair)  # [N, V]
        least = math.exp(-self.sharpness)
        apart = (host.exp() - scorer.exp()).abs_().div_(2)
        c = apart.mul_(-self.sharpness).exp_().sub_(least).div_(1.0 - least)
        best = torch.zeros_like(c, dtype=torch.bool)
        for one in (host, scorer):
            best.scatter_(1, one.topk(min(self.best, one.shape[1]), dim=-1).indices, True)
        mean = (c * best).sum(dim=-1, keepdim=True) / best.sum(dim=-1, keepdim=True)  # [N, 1]
        w_host, w_scorer = weights[:, names.index(self.host)], weights[:, names.index(self.scorer)]
        host.add_(w_host.log()[:, None])
        scorer.add_(w_scorer.log()[:, None]).add_(c.div_(mean).log_())
        return torch.logaddexp(host, scorer)
