"""Log-probabilities of given tokens under all fusion configs at once, and which of them are greedy.

The sources' logits are made once, whatever the number of fusion configs, and only gather minus
logsumexp leaves them. Fusion configs that are one point each, and choices that fall on such a
point, are scored together (see `grid_nll`); others one by one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.engine.model_runner import Fuser, LogitView
from trimix_lm_eval.fusion.config import LogitsProcessor
from trimix_lm_eval.fusion.logits import grid_greedy, grid_nll, log_prob, to_device

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
    fuser: Fuser, view: LogitView, targets: Tensor, vectors: Tensor
) -> list[TokenLogprobs]:
    """Score given tokens under every fusion config.

    Args:
        fuser: The sources and R fusion configs.
        view: N positions.
        targets: ``[N]`` the tokens that follow them.
        vectors: ``[R, N, S]`` source weights, on the CPU.

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
    for where, logits in view.chunks():
        here = targets[where]
        if on_point:
            logprobs = -grid_nll(logits, here, points)  # [P, n]
            greedy = grid_greedy(logits, here, points)  # [P, n]
            columns = torch.arange(len(here), device=device)
        for i, processor in enumerate(fuser.processors):
            mine = vectors[i, where]
            if i in on_point:
                at = on_point[i][where], columns
                parts[i].append(TokenLogprobs(logprobs[at], greedy[at], mine))
            else:
                parts[i].append(_under(fuser, logits, here, mine, processor))
        del logits  # before the next chunk's are made
    scored = _on_cpu([TokenLogprobs(*map(torch.cat, zip(*mine, strict=True))) for mine in parts])
    for processor, one in zip(fuser.processors, scored, strict=True):
        # A token that is excluded, by the plausibility mask for one, scores minus infinity.
        lowest = one.logprobs.isneginf() & processor.may_exclude
        view.check(one.logprobs.isfinite() | lowest)
    return scored


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
    plain = [i for i, processor in enumerate(fuser.processors) if processor == LogitsProcessor()]
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
