"""The next token of each row, as a function of its distribution and of noise that is the row's own.

Sampling is by the Gumbel-max trick: argmax of L / T + G, with G independent standard Gumbel noise
for every token of the vocabulary, is a draw from softmax(L / T) (Gumbel 1954; Maddison et al. 2014,
"A* Sampling"). The noise of a row's t-th token comes from the row's seed and t alone. So a text
depends neither on its batch nor on whether tokens were drafted: a draft is only a guess at the
value of this function, and stands if the guess was right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.utils.errors import TrimixError

#: How many of the most probable tokens are looked at first for top-p, before all are sorted.
_FIRST = 1024


class Sampling(NamedTuple):
    """How the next token is drawn from the fused distribution.

    Attributes:
        temperature: 0 is greedy.
        top_k: Keep the k most probable tokens; 0 keeps all.
        top_p: Keep the fewest most probable tokens that reach this mass; 1 keeps all.
        seed: Of the row's own noise.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


class Draw(NamedTuple):
    """One token to be drawn: how, and which of its row it is, counted from 0."""

    sampling: Sampling
    place: int


def pick(logits: Tensor, draws: Sequence[Draw], best: Tensor | None = None) -> Tensor:
    """Pick a token from each distribution, without waiting for a GPU.

    Args:
        logits: ``[N, V]``, unnormalised.
        draws: N of them.
        best: ``[N]`` the most probable tokens, where they are known.

    Returns:
        ``[N]`` token ids.
    """
    picked = logits.argmax(dim=-1) if best is None else best
    alike: dict[tuple[float, int, float], list[int]] = {}
    for i, draw in enumerate(draws):
        temperature, top_k, top_p, _ = draw.sampling
        if temperature > 0:
            alike.setdefault((temperature, top_k, top_p), []).append(i)
    for (temperature, top_k, top_p), some in alike.items():
        rows = torch.tensor(some).to(logits.device, non_blocking=True)
        some_logits = logits[rows]
        # Nothing is above 0, so that no temperature, however low, makes infinities of the best.
        some_logits -= some_logits.amax(dim=-1, keepdim=True)
        scores = apply_top_k_top_p(some_logits / temperature, top_k, top_p)
        picked[rows] = (scores + _noise(scores, [draws[i] for i in some])).argmax(dim=-1)
    return picked


def apply_top_k_top_p(scores: Tensor, top_k: int, top_p: float) -> Tensor:
    """Top-k, then top-p of what it leaves.

    Args:
        scores: ``[N, V]`` logits over temperature; changed in place.
        top_k: Keep so many; 0 keeps all.
        top_p: Keep the fewest that reach this mass; 1 keeps all.

    Returns:
        ``scores``, minus infinity for what is not kept. Tokens as probable as the last one kept
        are kept too: the order of equals decides nothing.
    """
    size = scores.shape[1]
    if top_k and top_k < size:
        best = scores.topk(top_k, dim=-1).values  # [N, k], descending
        mass = best.logsumexp(dim=-1, keepdim=True)
    elif top_p < 1:
        mass = scores.logsumexp(dim=-1, keepdim=True)
        best = _best_up_to(scores, mass, top_p)
    else:
        return scores
    p = (best - mass).double().exp()
    inside = p.cumsum(dim=-1) - p < top_p  # the mass before a token
    last = inside.sum(dim=-1, keepdim=True) - 1
    return scores.masked_fill_(scores < best.gather(1, last), -torch.inf)


def _best_up_to(scores: Tensor, mass: Tensor, top_p: float) -> Tensor:
    """The highest scores in order, at least as many as have ``top_p`` of the mass together."""
    # On a GPU a sort is cheap, and finding out whether it is needed is not.
    if scores.device.type == "cpu" and scores.shape[1] > _FIRST:
        best = scores.topk(_FIRST, dim=-1).values
        if bool(((best - mass).exp().sum(dim=-1) > top_p).all()):
            return best
    return scores.sort(dim=-1, descending=True).values


def _noise(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Gumbel noise ``[N, V]``: minus the logarithm of exponential noise."""
    noise = logits.new_empty(len(draws), logits.shape[1])
    generator = torch.Generator(logits.device)
    for row, draw in zip(noise, draws, strict=True):
        generator.manual_seed(_seed(draw.sampling.seed, draw.place))
        row.exponential_(generator=generator)
    return noise.clamp_min_(torch.finfo(noise.dtype).tiny).log_().neg_()


def _seed(seed: int, place: int) -> int:
    """63 bits for the noise of one token."""
    digest = hashlib.blake2b(f"{seed}:{place}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def check_sampling(sampling: Sampling) -> Sampling:
    """Return the sampling if its numbers make sense.

    Raises:
        TrimixError: One of them does not.
    """
    if not 0 <= sampling.temperature < float("inf"):
        raise TrimixError(
            f"temperature={sampling.temperature} is not a number from 0.", "0 is greedy"
        )
    if not 0 < sampling.top_p <= 1:
        raise TrimixError(f"top_p={sampling.top_p} is not in (0, 1].", "1 keeps all tokens")
    if sampling.top_k < 0:
        raise TrimixError(f"top_k={sampling.top_k} is negative.", "0 keeps all tokens")
    return sampling
