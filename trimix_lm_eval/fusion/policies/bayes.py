"""``bayes``: mixes the sources by how well each has predicted the text so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from trimix_lm_eval.fusion.collectors import Choice, PromptCollector, View
from trimix_lm_eval.fusion.policies.base import MixturePolicy, register
from trimix_lm_eval.fusion.policies.some_sources import SomeSources
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.utils.options import option
from trimix_lm_eval.utils.validation import number

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclasses.dataclass(frozen=True)
class Bayes(SomeSources, MixturePolicy):
    """Per token, p = sum_s w_s p_s, w the posterior of the sources after the tokens before it.

    w' = (1 − `share`) w_s p_s(x) / sum_r w_r p_r(x) + `share` / S after each token x, from the
    prompt's second token on; w = 1 / S at first (Fixed-Share of Herbster and Warmuth 1998;
    prequential, Dawid 1984). Honest: each token is judged by weights from the tokens before it.
    """

    name = "bayes"
    scope = "sample"
    honesty = "label_free"
    honest_when = "always"
    cost = "a softmax of each source per token, of the prompt too; no grid"
    url = "https://doi.org/10.1023/A:1007424614876"

    share: float = option(
        0.01,
        "number from 0 to 1",
        "How probable it is that another source predicts best from the next token on; with 0 one "
        "source soon has all the weight.",
        partial(number, least=0, most=1),
    )

    def prior(self, names: Sequence[str]) -> list[float]:
        """Equal weights, of S sources."""
        return [1 / len(self.among) if name in self.among else 0.0 for name in names]

    def update(self, weights: Tensor, logprobs: Tensor, names: Sequence[str]) -> Tensor:
        """Equation above."""
        import torch

        posterior = (weights.log() + logprobs).softmax(dim=-1).mul(1.0 - self.share)  # [N, S]
        # Numbers, not a tensor of them, which a GPU would have to be sent.
        added = [self.share * w for w in self.prior(names)]
        return torch.stack([w + more for w, more in zip(posterior.T, added, strict=True)], dim=1)

    def collector(self, names: tuple[str, ...]) -> PromptCollector:
        """Follows the prompt."""
        return _Follower(self, names)

    def choose(self, collectors: Sequence[PromptCollector]) -> Choice:
        """The weights after a prompt."""
        for one in collectors:
            if isinstance(one, _Follower):
                shares = dict(zip(one.names, one.weights[0].tolist(), strict=True))
                named = {name: shares[name] for name in self.among}
                return Choice(Weights.of_sources(named), tokens=one.count)
        return Choice(Weights.of_sources(dict.fromkeys(self.among, 1 / len(self.among))))


class _Follower(PromptCollector):
    """Updates weights with each token of a prompt.

    Args:
        policy: Whose they are.
        names: The sources, in the order of the logits.

    Attributes:
        weights: ``[1, S]`` float64 on the CPU, after what is settled.
    """

    def __init__(self, policy: Bayes, names: tuple[str, ...]) -> None:
        import torch

        self.policy, self.names = policy, names
        self.weights = torch.tensor([policy.prior(names)], dtype=torch.float64)  # [1, S]
        self._new: list[Tensor] = []  # [n, S] each

    def absorb(self, other: _Follower) -> None:
        """Go on from the other's weights."""
        self.count, self.weights = other.count, other.weights

    def read(self, view: View, targets: Tensor) -> None:
        """Add the log-probabilities of some tokens."""
        from trimix_lm_eval.fusion.mixture import logprobs_by_source

        for where, logits in view.chunks():
            self._new.append(logprobs_by_source(logits, targets[where]))
        self.count += len(targets)

    def unsettled(self) -> Tensor | None:
        """What is new, ``[n * S]``."""
        import torch

        return torch.cat(self._new).flatten() if self._new else None

    def settle(self, values: Tensor) -> None:
        """Update token by token."""
        for logprobs in values.view(-1, 1, len(self.names)):  # [1, S]
            self.weights = self.policy.update(self.weights, logprobs, self.names)
        self._new = []
