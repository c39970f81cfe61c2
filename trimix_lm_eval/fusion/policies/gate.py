"""``gate``: per token, how much the scorer believes in the host's favourite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from trimix_lm_eval.fusion.policies.base import Policy, present, register
from trimix_lm_eval.fusion.weights import SOURCES
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.options import option
from trimix_lm_eval.utils.validation import number, one_of

if TYPE_CHECKING:
    from torch import Tensor


_SOURCE = partial(one_of, accepted=SOURCES)


@register
@dataclasses.dataclass(frozen=True)
class Gate(Policy):
    """Per token, (1 − w)·`host` + w·`scorer`, w = 1 − p_scorer(the host's favourite) + `floor`.

    e = p_s(argmax h), w_s = min(1, 1 - e + floor), L = (1 - w_s) L_h + w_s L_s (SAF-W). Not in the
    paper. An unsure scorer gets nearly all the weight. Honest if the host was not chosen on the
    test set. Two forwards per token, no grid.
    """

    name = "gate"
    scope = "token"
    honesty = "label_free"
    honest_when = "if host and scorer were not chosen on the test set"
    cost = "two sources, no grid"
    url = "https://github.com/tianshuai-gao/SAF"

    host: str = option("large_ins", "source", "Whose favourite token is judged.", _SOURCE)
    scorer: str = option(
        "small_cpt", "source", "Who judges, and takes over where it disagrees.", _SOURCE
    )
    #: The paper's delta; lm-eval would take an argument of that name for a model.
    floor: float = option(
        0.0, "number from 0 to 1", "Least weight of the scorer.", partial(number, least=0, most=1)
    )

    def __post_init__(self) -> None:
        """Check the options, and that host and scorer are two."""
        super().__post_init__()
        if self.host == self.scorer:
            raise TrimixError(f"host and scorer are both {self.host}.", "name two sources")

    def sources(self, available: Iterable[str]) -> tuple[str, ...]:
        """Host and scorer."""
        return present({self.host, self.scorer}, available, self.name)

    def token_weights(self, logits: Sequence[Tensor], names: Sequence[str]) -> Tensor:
        """Equation above, ``[N, S]``."""
        from trimix_lm_eval.fusion.logits import log_prob

        host, scorer = names.index(self.host), names.index(self.scorer)
        favourite = logits[host].argmax(dim=-1)  # [N]
        belief = log_prob(logits[scorer], favourite).exp()  # [N]
        w = (1.0 - belief + self.floor).clamp(0.0, 1.0)
        weights = logits[0].new_zeros(len(favourite), len(names))
        weights[:, scorer] = w
        weights[:, host] = 1.0 - w
        return weights
