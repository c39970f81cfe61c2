"""Log-probabilities of given tokens under all fusion configs at once, and which of them are greedy.

The sources' logits are made once, whatever the number of fusion configs, and only gather minus
logsumexp leaves them. Fusion configs that are one point each, and choices that fall on such a
point, are scored together (see `grid_nll`); others one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.engine.model_runner import Fuser, LogitView
from trimix_lm_eval.fusion.config import LogitsProcessor
from trimix_lm_eval.fusion.logits import grid_greedy, grid_nll, log_prob, to_device
from trimix_lm_eval.fusion.mixture import logprobs_by_source
from trimix_lm_eval.utils.errors import warn_once

#: Fewer points than this are fused one by one.
_LEAST = 4


class TokenLogprobs(NamedTuple):
    """N given tokens scored under one fusion config, on the CPU.

    Attributes:
        logprobs: ``[N]`` log-probabilities, natural logarithm.
        greedy: ``[N]`` whether the token is the most probable one.
        weights: ``[N, S]`` the source weights in force.
    """

    logprobs: Tensor
    greedy: Tensor
    weights: Tensor


def compute_logprobs(
    fuser: Fuser, view: LogitView, targets: Tensor, vectors: Tensor, before: Sequence[int]
) -> list[TokenLogprobs]:
    """Score given tokens under every fusion config.

    Args:
        fuser: The sources and R fusion configs.
        view: N positions.
        targets: ``[N]`` the tokens that follow them.
        vectors: ``[R, N, S]`` source weights, on the CPU. Those that follow the text are replaced,
            but for a text's first token.
        before: For each position that of the token before it in the text, a lower one; -1 where
            the text begins.

    Returns:
        One for each fusion config.

    Raises:
        NotFinite: A source's logits are not numbers.
    """
    device = fuser.ensemble.device
    points, on_point = _shared_points(fuser, vectors)
    vectors = to_device(vectors, device)
    on_point = {i: to_device(which, device) for i, which in on_point.items()}
    parts: list[list[TokenLogprobs]] = [[] for _ in fuser.configs]
    following = _Following(fuser, vectors, before)
    for where, logits in view.chunks():
        here = targets[where]
        following.advance(where, logits, here)
        if on_point:
            logprobs = -grid_nll(logits, here, points)  # [P, n]
            greedy = grid_greedy(logits, here, points)  # [P, n]
            columns = torch.arange(len(here), device=device)
        for i, processor in enumerate(fuser.scoring):
            mine = vectors[i, where]
            if i in on_point:
                at = on_point[i][where], columns
                parts[i].append(TokenLogprobs(logprobs[at], greedy[at], mine))
            else:
                parts[i].append(_under(fuser, logits, here, mine, processor))
        del logits  # before the next chunk's are made
    scored = _on_cpu([TokenLogprobs(*map(torch.cat, zip(*mine, strict=True))) for mine in parts])
    for processor, one in zip(fuser.scoring, scored, strict=True):
        # A token that is excluded, by the plausibility mask for one, scores minus infinity.
        lowest = one.logprobs.isneginf() & processor.may_exclude
        view.check(one.logprobs.isfinite() | lowest)
        if processor.plausibility is not None and bool(lowest.any()):
            warn_once(
                "The plausibility mask gives some of the given answers no probability: their "
                "log-likelihood is minus infinity, and of a question whose options all are so "
                "lm-eval takes the first."
            )
    return scored


class _Following:
    """Weights that follow their texts: each by that of the token before it.

    Args:
        fuser: The sources and R fusion configs.
        vectors: ``[R, N, S]``; those that follow are written as it advances.
        before: See `compute_logprobs`.
    """

    def __init__(self, fuser: Fuser, vectors: Tensor, before: Sequence[int]) -> None:
        self.fuser, self.vectors, self.before = fuser, vectors, before
        self.which = [i for i, one in enumerate(fuser.scoring) if one.updates]
        self.logprobs = vectors.new_empty(vectors.shape[1:] if self.which else (0,))  # [N, S]
        self.depth: list[int] = []  # how many tokens are before each
        for one in before if self.which else ():
            self.depth.append(0 if one < 0 else self.depth[one] + 1)

    def advance(self, where: slice, logits: Sequence[Tensor], targets: Tensor) -> None:
        """Find the weights of some positions, given what follows them; all before are done."""
        if not self.which:
            return
        self.logprobs[where] = logprobs_by_source(logits, targets)
        levels: dict[int, list[int]] = {}
        for at in range(where.start, where.stop):
            if self.before[at] >= 0:
                levels.setdefault(self.depth[at], []).append(at)
        for _, level in sorted(levels.items()):
            both = torch.tensor([level, [self.before[at] for at in level]])
            here, there = to_device(both, self.vectors.device)
            for i in self.which:
                self.vectors[i, here] = self.fuser.updated(
                    self.vectors[i, there], self.logprobs[there], self.fuser.scoring[i]
                )


def _under(
    fuser: Fuser,
    logits: list[Tensor],
    targets: Tensor,
    vectors: Tensor,
    processor: LogitsProcessor,
) -> TokenLogprobs:
    """Score n tokens under one fusion config; the fused logits are gone afterwards."""
    fused, used = fuser.fused(logits, vectors, processor)
    return TokenLogprobs(log_prob(fused, targets), fused.argmax(dim=-1) == targets, used)


def _on_cpu(scored: list[TokenLogprobs]) -> list[TokenLogprobs]:
    """The same on the CPU, in one transfer."""
    columns = [column for one in scored for column in one]
    if columns[0].device.type == "cpu":
        return scored
    whole = torch.cat([column.double().flatten() for column in columns]).cpu()
    parts = whole.split([column.numel() for column in columns])
    back = [x.view(like.shape).to(like.dtype) for x, like in zip(parts, columns, strict=True)]
    return [TokenLogprobs(*back[i : i + 3]) for i in range(0, len(back), 3)]


def _shared_points(fuser: Fuser, vectors: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """The points that are scored together, and the fusion configs that they stand for.

    Args:
        fuser: The sources and R fusion configs.
        vectors: ``[R, N, S]`` their weights, on the CPU: what is asked of them must not wait.

    Returns:
        ``[P, S]`` points, and by config which of them is in force at each position, ``[N]``; no
        fusion config if they are too few to gain anything.
    """
    plain = [i for i, processor in enumerate(fuser.scoring) if processor == LogitsProcessor()]
    fixed = [i for i in plain if fuser.configs[i].policy.scope == "run"]
    points = vectors[fixed, 0].unique(dim=0)
    if len(points) < _LEAST:
        return points, {}
    on_point = {}
    for i in plain:
        same = (vectors[i][:, None] == points).all(dim=-1)  # [N, P]
        if bool(same.any(dim=1).all()):
            on_point[i] = same.to(torch.uint8).argmax(dim=1)
    return points, on_point
