"""Sources and fusion configs together: from hidden states to distributions.

A run has one config. A sweep has many, and the sources still run once: configs differ only in what
is made of the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from trimix_lm_eval.engine.input_batch import Ensemble
from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.fusion.config import FusionConfig, LogitsProcessor
from trimix_lm_eval.fusion.logits import fuse, plausible
from trimix_lm_eval.fusion.policies import Policy, reading
from trimix_lm_eval.fusion.weights import Weights


@dataclass(frozen=True)
class Fuser:
    """How the sources' logits become distributions.

    Attributes:
        ensemble: The sources.
        configs: What is made of them; at least one.
    """

    ensemble: Ensemble
    configs: tuple[FusionConfig, ...]

    @cached_property
    def choosers(self) -> tuple[int, ...]:
        """For each config the first one with the same policy, which reads and chooses for it."""
        first: dict[Policy, int] = {}
        return tuple(first.setdefault(r.policy, i) for i, r in enumerate(self.configs))

    @cached_property
    def bits(self) -> dict[Policy, int]:
        """The policies that read prompts, with their bits."""
        return reading(config.policy for config in self.configs)

    def only(self, config: int) -> Fuser:
        """The same sources with one of the fusion configs."""
        return Fuser(self.ensemble, (self.configs[config],))

    def fused(
        self, logits: Sequence[Tensor], vectors: Tensor, rule: LogitsProcessor
    ) -> tuple[Tensor, Tensor]:
        """Fused logits ``[N, V]`` and the weights in force ``[N, S]``.

        Args:
            logits: One ``[N, V]`` tensor per source.
            vectors: ``[N, S]`` chosen weights; a policy per token replaces them.
            rule: What is made of them.
        """
        names = self.ensemble.names
        if rule.per_token is not None:
            vectors = rule.per_token.token_weights(logits, names)
        fused = fuse(logits, vectors)
        if rule.plausibility is not None:
            reference = logits[names.index(rule.reference)]
            fused = plausible(fused, reference, rule.plausibility)
        return fused, vectors

    def vector(self, choice: Choice | None) -> list[float]:
        """A choice as one weight per source; zeros where weights are per token."""
        if choice is None:
            return [0.0] * len(self.ensemble.names)
        return choice.weights.vector(self.ensemble.names)


def mean_choice(fuser: Fuser, used: Tensor) -> Choice:
    """The mean weights of a policy per token, ``[N, S]`` over all sources to a point."""
    mean = dict(zip(fuser.ensemble.names, used.double().mean(dim=0).tolist(), strict=True))
    alpha, beta = mean.get("large_ins", 0.0), mean.get("small_cpt", 0.0)
    gamma = alpha + mean.get("large_base", 0.0)
    return Choice(Weights(round(alpha, 4), round(beta, 4), round(gamma, 4)))
