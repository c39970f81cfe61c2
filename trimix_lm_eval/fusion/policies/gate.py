"""``gate``: per token, how much the scorer believes in the host's favourite."""

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
class Gate(PairPolicy):
    """Per token, (1 − w)·`host` + w·`scorer`, w = 1 − p_scorer(the host's favourite) + `floor`.

    e = p_s(argmax h), w_s = min(1, 1 - e + floor), L = (1 - w_s) L_h + w_s L_s (SAF-W). Not in the
    paper. An unsure scorer gets nearly all the weight. Honest if the host was not chosen on the
    test set. Two forwards per token, no grid. SAF's form with a constant weight of the scorer is
    a point: ``fixed``, at (0.5, 0.5).
    """

    name = "gate"
    honesty = "label_free"
    honest_when = "if host and scorer were not chosen on the test set"
    url = "https://github.com/tianshuai-gao/SAF"

    #: The paper's delta; lm-eval would take an argument of that name for a model.
    floor: float = option(
        0.0, "number from 0 to 1", "Least weight of the scorer.", partial(number, least=0, most=1)
    )

    def token_weights(self, logits: Sequence[Tensor], names: Sequence[str]) -> Tensor:
        """Equation above, ``[N, S]``."""
        from trimix_lm_eval.fusion.logits import log_prob, pair_weights

        pair = self.host, self.scorer
        host, scorer = (logits[names.index(name)] for name in pair)  # [N, V]
        belief = log_prob(scorer, host.argmax(dim=-1)).exp()  # [N]
        return pair_weights((1.0 - belief + self.floor).clamp(0.0, 1.0), names, pair)
