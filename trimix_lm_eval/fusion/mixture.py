"""Mixtures: one distribution made of the sources' probabilities instead of their logits.

    p(v) = sum_s w_s softmax(L_s)_v

A product of distributions, which weighted logits are, gives a token no more than every source
allows it; a mixture gives it what any of them does. Everything here works on logarithms, so that a
probability that fp32 does not know still has a score.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimix_lm_eval.fusion.logits import log_prob


def mix(logits: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The logarithm of a mixture of the sources' distributions.

    Args:
        logits: One ``[N, V]`` tensor per source, fp32.
        weights: ``[N, S]``, none below 0; a row need not sum to 1.

    Returns:
        ``[N, V]`` scores, log-probabilities where the weights sum to 1; minus infinity where no
        source has any weight.
    """
    mixed: Tensor | None = None
    for source, of_source in enumerate(logits):
        term = of_source.log_softmax(dim=-1).add_(weights[:, source, None].log())  # [N, V]
        mixed = term if mixed is None else torch.logaddexp(mixed, term, out=mixed)
    assert mixed is not None
    return mixed


def logprobs_by_source(logits: Sequence[Tensor], tokens: Tensor) -> Tensor:
    """Log-probability of tokens ``[N]`` by each source, ``[N, S]``, natural logarithm."""
    return torch.stack([log_prob(of_source, tokens) for of_source in logits], dim=1)


def entropies(logits: Sequence[Tensor]) -> Tensor:
    """Entropy of each source's next-token distribution, ``[N, S]`` in nats."""
    found = []
    for of_source in logits:
        log_p = of_source.log_softmax(dim=-1)  # [N, V]
        found.append(-(log_p.exp() * log_p).sum(dim=-1))
    return torch.stack(found, dim=1)
