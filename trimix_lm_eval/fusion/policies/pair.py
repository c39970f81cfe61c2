"""What policies of two sources have in common: the host, and a scorer who judges or helps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial

from trimix_lm_eval.fusion.policies.base import Policy, present
from trimix_lm_eval.fusion.weights import SOURCES
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.options import option
from trimix_lm_eval.utils.validation import one_of

_SOURCE = partial(one_of, accepted=SOURCES)


@dataclasses.dataclass(frozen=True)
class PairPolicy(Policy):
    """Weights of two sources per token."""

    scope = "token"
    cost = "two sources, no grid"

    host: str = option("large_ins", "source", "The source that leads.", _SOURCE)
    scorer: str = option("small_cpt", "source", "The other one.", _SOURCE)

    def __post_init__(self) -> None:
        """Check the options, and that host and scorer are two."""
        super().__post_init__()
        if self.host == self.scorer:
            raise TrimixError(f"host and scorer are both {self.host}.", "name two sources")

    def sources(self, available: Iterable[str]) -> tuple[str, ...]:
        """Host and scorer."""
        return present({self.host, self.scorer}, available, self.name)
