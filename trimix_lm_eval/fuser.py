"""Sources and policy together: from hidden states to one distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval import fusion
from trimix_lm_eval.ensemble import Ensemble, LogitView
from trimix_lm_eval.policies import Policy
from trimix_lm_eval.readers import Choice
from trimix_lm_eval.weights import Weights


class Fuser(NamedTuple):
    """How the sources' logits become one distribution.

    Attributes:
        ensemble: The sources.
        policy: Who chooses the weights.
        plausibility: ``a`` of the plausibility mask, or None.
        plausibility_source: Whose logits the mask looks at.
    """

    ensemble: Ensemble
    policy: Policy
    plausibility: float | None = None
    plausibility_source: str = "large_ins"

    def fused(self, logits: Sequence[Tensor], vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Fused logits ``[N, V]`` and the weights in force ``[N, S]``.

        Args:
            logits: One ``[N, V]`` tensor per source.
            vectors: ``[N, S]`` chosen weights; a policy per token replaces them.
        """
        names = self.ensemble.names
        if self.policy.scope == "token":
            vectors = self.policy.token_weights(logits, names)
        fused = fusion.fuse(logits, vectors)
        if self.plausibility is not None:
            reference = logits[names.index(self.plausibility_source)]
            fused = fusion.plausible(fused, reference, self.plausibility)
        return fused, vectors

    def vector(self, choice: Choice | None) -> list[float]:
        """A choice as one weight per source; zeros where weights are per token."""
        if choice is None:
            return [0.0] * len(self.ensemble.names)
        return choice.weights.vector(self.ensemble.names)


def judge(
    fuser: Fuser, view: LogitView, targets: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Fused log-probabilities of given tokens.

    Args:
        fuser: The sources and the policy.
        view: N positions.
        targets: ``[N]`` the tokens that follow them.
        vectors: ``[N, S]`` source weights.

    Returns:
        ``[N]`` log-probabilities, ``[N]`` whether the token is the most probable one, and
        ``[N, S]`` the weights in force, all on the CPU.
    """
    log_p, greedy, used = [], [], []
    for where, logits in view.chunks():
        fused, weights = fuser.fused(logits, vectors[where])
        log_p.append(fusion.log_prob(fused, targets[where]))
        greedy.append(fused.argmax(dim=-1) == targets[where])
        used.append(weights)
    values = torch.cat(log_p).cpu()
    # A token that the plausibility mask removes has probability 0: minus infinity is its score.
    view.check(~values.isnan() if fuser.plausibility is not None else values.isfinite())
    return values, torch.cat(greedy).cpu(), torch.cat(used).cpu()


def mean_choice(fuser: Fuser, used: Tensor) -> Choice:
    """The mean weights of a policy per token, ``[N, S]`` over all sources to a point."""
    mean = dict(zip(fuser.ensemble.names, used.double().mean(dim=0).tolist(), strict=True))
    alpha, beta = mean.get("large_ins", 0.0), mean.get("small_cpt", 0.0)
    gamma = alpha + mean.get("large_base", 0.0)
    return Choice(Weights(round(alpha, 4), round(beta, 4), round(gamma, 4)))
