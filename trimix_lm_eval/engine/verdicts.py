"""Which token comes next, for all voices of all rows: each has its own distribution.

The sources' logits of a position are there once. Voices of a row are taken in layers, one voice of
each row at a time, so that nothing is copied where every row has a single voice, as in a run of one
fusion config.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.engine.model_runner import Fuser, LogitView
from trimix_lm_eval.engine.sampler import Draw, pick
from trimix_lm_eval.fusion.config import LogitsProcessor, ResolvedFusion


class Said(NamedTuple):
    """What one voice says at k positions of a row.

    Attributes:
        tokens: The token that comes at each.
        weights: ``[k, S]`` source weights in force.
    """

    tokens: list[int]
    weights: Tensor


class Verdict(NamedTuple):
    """What all voices say at B rows times k positions, on the CPU.

    Attributes:
        said: By row and voice.
        finite: ``[B * k]`` whether the logits are numbers.
        more: What was to come along.
    """

    said: list[list[Said]]
    finite: Tensor
    more: list[list[int]]


class _Layer(NamedTuple):
    """One voice each of some rows, under one rule.

    Attributes:
        rule: The rule.
        of: (row, voice), one voice of a row at most, in the order of the rows.
        vectors: ``[n, S]`` their weights.
    """

    rule: LogitsProcessor
    of: list[tuple[int, int]]
    vectors: Tensor


def _layers(voices: Sequence[Sequence[ResolvedFusion]], device: torch.device) -> list[_Layer]:
    """The voices of all rows, as few layers as hold them all."""
    found: dict[tuple[LogitsProcessor, int], list[tuple[int, int]]] = {}
    for row, mine in enumerate(voices):
        seen: dict[LogitsProcessor, int] = {}
        for voice, (_, rule) in enumerate(mine):
            seen[rule] = depth = seen.get(rule, -1) + 1
            found.setdefault((rule, depth), []).append((row, voice))
    layers = []
    for (rule, _), of in found.items():
        vectors = torch.tensor([voices[row][voice].vector for row, voice in of])
        layers.append(_Layer(rule, of, vectors.to(device, non_blocking=True)))
    return layers


def judge_next(
    fuser: Fuser,
    view: LogitView,
    voices: Sequence[Sequence[ResolvedFusion]],
    draws: Sequence[Sequence[Draw]],
    *more: Tensor,
) -> Verdict:
    """Which token comes at each position: one synchronisation with the device.

    Args:
        fuser: The sources.
        view: B rows times k positions, row by row.
        voices: Of each row.
        draws: Of each row, how each of its k tokens is drawn.
        *more: ``[B * k]`` integers on the device that are to come along.
    """
    k, device = len(draws[0]), fuser.ensemble.device
    layers = _layers(voices, device)
    tokens: list[list[Tensor]] = [[] for _ in layers]
    tops: list[list[Tensor]] = [[] for _ in layers]
    used: list[list[Tensor]] = [[] for _ in layers]
    for where, logits in view.chunks():
        for i, (rule, of, vectors) in enumerate(layers):
            at = [row * k + j for row, _ in of for j in range(k)]
            low, high = bisect_left(at, where.start), bisect_left(at, where.stop)
            if low == high:
                continue
            mine = logits
            if high - low < where.stop - where.start:
                local = torch.tensor(at[low:high]) - where.start
                mine = [x[local.to(x.device, non_blocking=True)] for x in logits]
            weights = vectors.repeat_interleave(k, dim=0)[low:high]
            fused, weights = fuser.fused(mine, weights, rule)
            best = fused.max(dim=-1)
            some = [draws[p // k][p % k] for p in at[low:high]]
            tokens[i].append(pick(fused, some, best.indices))
            tops[i].append(best.values)
            used[i].append(weights)
    columns = [torch.cat([x for part in c for x in part]) for c in (tokens, tops)]
    size = len(fuser.ensemble.names)
    weights = torch.cat([x for part in used for x in part])  # [M, S]
    numbers = [c.double() for c in (*columns, weights.flatten(), *more)]
    widths = [len(c) for c in numbers]
    picked, top, weights, *came = torch.cat(numbers).cpu().split(widths)
    return _verdict(layers, k, picked, top, weights.view(-1, size), [c.tolist() for c in came])


def _verdict(
    layers: Sequence[_Layer],
    k: int,
    tokens: Tensor,
    tops: Tensor,
    weights: Tensor,
    more: Sequence[Sequence[float]],
) -> Verdict:
    """Sort what the layers say, one below the other, by row and voice."""
    rows = 1 + max(row for layer in layers for row, _ in layer.of)
    found: dict[tuple[int, int], Said] = {}
    finite = torch.ones(rows, k, dtype=torch.bool)
    whole = tokens.nan_to_num().long().tolist()
    at = 0
    for layer in layers:
        for row, voice in layer.of:
            here = slice(at, at + k)
            found[row, voice] = Said(whole[here], weights[here])
            finite[row] &= tops[here].isfinite()
            at += k
    said: list[list[Said]] = [[] for _ in range(rows)]
    for row, voice in sorted(found):
        said[row].append(found[row, voice])
    return Verdict(said, finite.flatten(), [[int(x) for x in column] for column in more])


def together(said: Sequence[Sequence[int]]) -> list[tuple[list[int], list[int]]]:
    """What some voices say, each way once, with the voices that say it."""
    ways: dict[tuple[int, ...], list[int]] = {}
    for voice, tokens in enumerate(said):
        ways.setdefault(tuple(tokens), []).append(voice)
    return [(list(tokens), voices) for tokens, voices in ways.items()]
