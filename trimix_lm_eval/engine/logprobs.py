"""Given tokens under all configs at once: log-probabilities, and which tokens are the favourites.

The sources' logits are made once, whatever the number of configs. Those that are one point each,
and the choices that fall on such a point, are judged together (see `grid_nll`); others one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.engine.fuser import Fuser
from trimix_lm_eval.engine.input_batch import LogitView
from trimix_lm_eval.fusion.config import LogitsProcessor
from trimix_lm_eval.fusion.logits import grid_greedy, grid_nll, log_prob

#: Fewer points than this are fused one by one.
_LEAST = 4


class Judged(NamedTuple):
    """What one fusion config says of N given tokens, on the CPU.

    Attributes:
        log_p: ``[N]`` log-probabilities, natural logarithm.
        greedy: ``[N]`` whether the token is the most probable one.
        used: ``[N, S]`` the weights in force.
    """

    log_p: Tensor
    greedy: Tensor
    used: Tensor


def judge(fuser: Fuser, view: LogitView, targets: Tensor, vectors: Tensor) -> list[Judged]:
    """Judge given tokens under every fusion config.

    Args:
        fuser: The sources and R fusion configs.
        view: N positions.
        targets: ``[N]`` the tokens that follow them.
        vectors: ``[R, N, S]`` source weights, on the CPU.

    Returns:
        One for each fusion config.
    """
    device = fuser.ensemble.device
    points, on_point = _points_in_common(fuser, vectors)
    points, vectors = points.to(device), vectors.to(device)
    on_point = {i: which.to(device) for i, which in on_point.items()}
    parts: list[list[Judged]] = [[] for _ in fuser.configs]
    for where, logits in view.chunks():
        here = targets[where]
        if on_point:
            log_p = -grid_nll(logits, here, points)  # [P, n]
            greedy = grid_greedy(logits, here, points)  # [P, n]
            columns = torch.arange(len(here), device=device)
        for i, config in enumerate(fuser.configs):
            mine = vectors[i, where]
            if i in on_point:
                at = on_point[i][where], columns
                parts[i].append(Judged(log_p[at], greedy[at], mine))
            else:
                parts[i].append(_alone(fuser, logits, here, mine, config.rule))
    whole = [Judged(*(torch.cat(column).cpu() for column in zip(*p, strict=True))) for p in parts]
    for config, judged in zip(fuser.configs, whole, strict=True):
        # A token that the plausibility mask removes has probability 0: minus infinity is its score.
        masked = config.plausibility is not None
        view.check(~judged.log_p.isnan() if masked else judged.log_p.isfinite())
    return whole


def _alone(
    fuser: Fuser, logits: Sequence[Tensor], targets: Tensor, vectors: Tensor, rule: LogitsProcessor
) -> Judged:
    """Judge ``[n]`` tokens under one fusion config."""
    fused, used = fuser.fused(logits, vectors, rule)
    return Judged(log_prob(fused, targets), fused.argmax(dim=-1) == targets, used)


def _points_in_common(fuser: Fuser, vectors: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """The points that are judged together, and who is judged by them.

    Args:
        fuser: The sources and R fusion configs.
        vectors: ``[R, N, S]`` their weights, on the CPU: what is asked of them must not wait.

    Returns:
        ``[P, S]`` points, and by config which of them is in force at each position, ``[N]``; no
        fusion config if they are too few to gain anything.
    """
    plain = [i for i, config in enumerate(fuser.configs) if config.rule == LogitsProcessor()]
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
