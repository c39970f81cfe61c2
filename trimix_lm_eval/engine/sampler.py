"""The next token of each sequence, drawn from its fused distribution with noise of its own.

Sampling is by the Gumbel-max trick: argmax of L / T + G, with G independent standard Gumbel noise
for every token of the vocabulary, is a draw from softmax(L / T) (Gumbel 1954; Maddison et al. 2014,
"A* Sampling"). The noise of a sequence's t-th token comes from the sequence's seed and t alone. So
a text depends neither on its batch nor on whether tokens were drafted: a draft is only a guess at
the value of this function, and is accepted if the guess was right. The noise is the same on every
device; how it is made is in `noise`.

The sources' logits of a position exist once for all branches of a sequence. Branches are taken in
layers, one branch of each sequence at a time, so that nothing is copied where every sequence has a
single branch, as in a run of one fusion.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.engine.model_runner import Fuser, LogitView
from trimix_lm_eval.engine.noise import gumbel, seed_words
from trimix_lm_eval.fusion.config import LogitsProcessor, ResolvedFusion
from trimix_lm_eval.fusion.logits import WORK_BYTES, to_device
from trimix_lm_eval.fusion.mixture import logprobs_by_source
from trimix_lm_eval.utils.errors import TrimixError

#: How many of the most probable tokens are looked at first for top-p, before all are sorted.
_FIRST = 1024
#: Bytes that drawing a token takes per entry of the vocabulary, all that is there at once.
_ENTRY_BYTES = 64


@dataclass(frozen=True)
class SamplingParams:
    """How one text is continued.

    Attributes:
        max_new_tokens: The text ends after so many new tokens, at least 1.
        stop: The text ends before the first of these strings.
        temperature: The fused logits are divided by it; 0 is greedy.
        top_k: Only the k most probable tokens are kept; 0 keeps all.
        top_p: Only the fewest most probable tokens that reach this mass are kept; 1 keeps all.
        seed: Of the text's own noise.

    Raises:
        TrimixError: One of the values makes no sense.
    """

    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        stop: object = self.stop  # one string is a natural slip, and a sequence of its letters
        stop = (stop,) if isinstance(stop, str) else tuple(self.stop or ())
        if not all(isinstance(one, str) for one in stop):
            raise TrimixError(f"stop={self.stop!r} is no list of strings.", "e.g. stop=['\\n']")
        object.__setattr__(self, "stop", stop)
        for name, kind, hint in (
            ("max_new_tokens", int, "give a whole number N >= 1"),
            ("temperature", (int, float), "give a number; 0 is greedy"),
            ("top_k", int, "give a whole number; 0 keeps all tokens"),
            ("top_p", (int, float), "give a number in (0, 1]; 1 keeps all tokens"),
            ("seed", int, "give a whole number"),
        ):
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise TrimixError(f"{name}={value!r} is not such a number.", hint)
        if self.max_new_tokens < 1:
            raise TrimixError(f"max_new_tokens={self.max_new_tokens} makes no text.", "give N >= 1")
        if not 0 <= self.temperature < float("inf"):
            what = f"temperature={self.temperature} is not a number from 0."
            raise TrimixError(what, "0 is greedy")
        if not 0 < self.top_p <= 1:
            raise TrimixError(f"top_p={self.top_p} is not in (0, 1].", "1 keeps all tokens")
        if self.top_k < 0:
            raise TrimixError(f"top_k={self.top_k} is negative.", "0 keeps all tokens")


class Draw(NamedTuple):
    """One token to be drawn: how, and which token of its text it is, counted from 0."""

    params: SamplingParams
    step: int


class SampledTokens(NamedTuple):
    """What one branch of a sequence samples at k positions.

    Attributes:
        token_ids: The k tokens.
        weights: ``[k, S]``, for each token the weight of every source that was in force; where
            weights follow the text, those for the token after it.
    """

    token_ids: list[int]
    weights: Tensor


class SamplerOutput(NamedTuple):
    """What all branches sample at B sequences times k positions, on the CPU.

    Attributes:
        sampled: By sequence and branch.
        finite: ``[B * k]`` whether the fused logits are numbers.
        extra: The columns that were to come along, as lists.
    """

    sampled: list[list[SampledTokens]]
    finite: Tensor
    extra: list[list[int]]


class _Layer(NamedTuple):
    """One branch each of some sequences, all under one logits processor.

    Attributes:
        processor: The logits processor.
        of: (sequence, branch), at most one branch of a sequence, in the order of the sequences.
        vectors: ``[n, S]`` their source weights.
    """

    processor: LogitsProcessor
    of: list[tuple[int, int]]
    vectors: Tensor


def _layers(fusions: Sequence[Sequence[ResolvedFusion]], device: torch.device) -> list[_Layer]:
    """The branches of all sequences, in as few layers as hold them all."""
    found: dict[tuple[LogitsProcessor, int], list[tuple[int, int]]] = {}
    for row, mine in enumerate(fusions):
        seen: dict[LogitsProcessor, int] = {}
        for branch, (_, processor) in enumerate(mine):
            seen[processor] = depth = seen.get(processor, -1) + 1
            found.setdefault((processor, depth), []).append((row, branch))
    layers = []
    for (processor, _), of in found.items():
        vectors = torch.tensor([fusions[row][branch].vector for row, branch in of])
        layers.append(_Layer(processor, of, to_device(vectors, device)))
    return layers


def sample(
    fuser: Fuser,
    view: LogitView,
    fusions: Sequence[Sequence[ResolvedFusion]],
    draws: Sequence[Sequence[Draw]],
    *extra: Tensor,
) -> SamplerOutput:
    """Sample a token at each position, with one synchronisation with the device.

    Args:
        fuser: The sources.
        view: B sequences times k positions, sequence by sequence.
        fusions: Of each sequence, those of its branches.
        draws: Of each sequence, how each of its k tokens is drawn.
        *extra: ``[B * k]`` integers on the device that are to come along to the host.
    """
    k, device = len(draws[0]), fuser.ensemble.device
    layers = _layers(fusions, device)
    tokens: list[list[Tensor]] = [[] for _ in layers]
    tops: list[list[Tensor]] = [[] for _ in layers]
    used: list[list[Tensor]] = [[] for _ in layers]
    for where, logits in view.chunks():
        for i, (processor, of, vectors) in enumerate(layers):
            at = [row * k + j for row, _ in of for j in range(k)]
            low, high = bisect_left(at, where.start), bisect_left(at, where.stop)
            if low == high:
                continue
            mine = logits
            if high - low < where.stop - where.start:
                local = torch.tensor(at[low:high]) - where.start
                local = to_device(local, device)
                mine = [x[local] for x in logits]
            some = [draws[p // k][p % k] for p in at[low:high]]
            if processor.updates is None:
                weights = vectors.repeat_interleave(k, dim=0)[low:high]
                parts = _draw(fuser, mine, processor, weights, some)
            else:
                rows = [p // k for p in range(low, high)]
                parts = _draw_following(fuser, mine, processor, vectors, rows, some)
            for column, part in zip((tokens[i], tops[i], used[i]), parts, strict=True):
                column.append(part)
            del mine
        del logits  # before the next chunk's are made
    columns = [torch.cat([x for part in c for x in part]) for c in (tokens, tops)]
    size = len(fuser.ensemble.names)
    weights = torch.cat([x for part in used for x in part])  # [M, S]
    numbers = [c.double() for c in (*columns, weights.flatten(), *extra)]
    widths = [len(c) for c in numbers]
    picked, top, weights, *came = torch.cat(numbers).cpu().split(widths)
    return _sorted(layers, k, picked, top, weights.view(-1, size), [c.tolist() for c in came])


def _draw(
    fuser: Fuser,
    logits: Sequence[Tensor],
    processor: LogitsProcessor,
    weights: Tensor,
    draws: Sequence[Draw],
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a token at each of N positions.

    Args:
        fuser: The sources.
        logits: ``[N, V]`` of each source.
        processor: What is made of them.
        weights: ``[N, S]`` source weights.
        draws: How each token is drawn.

    Returns:
        ``[N]`` tokens, ``[N]`` the highest fused logits, and ``[N, S]`` weights in force.
    """
    fused, weights = fuser.fused(logits, weights, processor)
    best = fused.max(dim=-1)
    return pick(fused, draws, best.indices), best.values, weights


def _draw_following(
    fuser: Fuser,
    logits: Sequence[Tensor],
    processor: LogitsProcessor,
    vectors: Tensor,
    rows: Sequence[int],
    draws: Sequence[Draw],
) -> tuple[Tensor, Tensor, Tensor]:
    """`_draw` with weights that follow the text.

    The token that is drawn at a position is the text's: where it is not the draft, what is drawn at
    later positions counts for nothing.

    Args:
        fuser: The sources.
        logits: ``[N, V]`` of each source.
        processor: What is made of them.
        vectors: ``[n, S]`` source weights of n texts, which are brought up to date.
        rows: Of which text each position is, in the order of its tokens.
        draws: How each token is drawn.

    Returns:
        ``[N]`` tokens, ``[N]`` the highest fused logits, and ``[N, S]`` weights for the token
        after each.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    order: list[int] = []
    left = list(range(len(rows)))
    while left:
        # The first of each row, then the second of each, and so on.
        now = list({rows[i]: i for i in reversed(left)}.values())[::-1]
        here = to_device(torch.tensor(now), vectors.device)
        mine, some = [x[here] for x in logits], [rows[i] for i in now]
        at = to_device(torch.tensor(some), vectors.device)
        tokens, tops, weights = _draw(fuser, mine, processor, vectors[at], [draws[i] for i in now])
        logprobs = logprobs_by_source(mine, tokens)
        vectors[at] = fuser.updated(weights, logprobs, processor)
        found.append((tokens, tops, vectors[at]))
        order += now
        done = set(now)
        left = [i for i in left if i not in done]
    back = to_device(torch.tensor(order).argsort(), vectors.device)
    tokens, tops, weights = (torch.cat(parts)[back] for parts in zip(*found, strict=True))
    return tokens, tops, weights


def _sorted(
    layers: Sequence[_Layer],
    k: int,
    tokens: Tensor,
    tops: Tensor,
    weights: Tensor,
    extra: Sequence[Sequence[float]],
) -> SamplerOutput:
    """Sort what the layers sampled, one below the other, by sequence and branch."""
    rows = 1 + max(row for layer in layers for row, _ in layer.of)
    found: dict[tuple[int, int], SampledTokens] = {}
    finite = torch.ones(rows, k, dtype=torch.bool)
    whole = tokens.nan_to_num().long().tolist()
    at = 0
    for layer in layers:
        for row, branch in layer.of:
            here = slice(at, at + k)
            found[row, branch] = SampledTokens(whole[here], weights[here])
            finite[row] &= tops[here].isfinite()
            at += k
    sampled: list[list[SampledTokens]] = [[] for _ in range(rows)]
    for row, branch in sorted(found):
        sampled[row].append(found[row, branch])
    return SamplerOutput(sampled, finite.flatten(), [[int(x) for x in column] for column in extra])


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
    for i, (params, _) in enumerate(draws):
        if params.temperature > 0:
            alike.setdefault((params.temperature, params.top_k, params.top_p), []).append(i)
    step = _rows_at_a_time(logits)
    parts = [(how, of[s : s + step]) for how, of in alike.items() for s in range(0, len(of), step)]
    for (temperature, top_k, top_p), some in parts:
        rows = to_device(torch.tensor(some), logits.device)
        some_logits = logits[rows]
        # Nothing is above 0, so that no temperature, however low, makes infinities of the best.
        some_logits -= some_logits.amax(dim=-1, keepdim=True)
        # As a number of the logits' kind: 0 and infinity would make NaN of 0 and of -infinity.
        kind = torch.finfo(some_logits.dtype)
        some_logits /= min(max(temperature, kind.tiny), kind.max)
        scores = apply_top_k_top_p(some_logits, top_k, top_p)
        picked[rows] = (scores + _noise(scores, [draws[i] for i in some])).argmax(dim=-1)
    return picked


def _rows_at_a_time(logits: Tensor) -> int:
    """Rows of logits whose scores, noise and order there is room for."""
    return max(1, WORK_BYTES // (_ENTRY_BYTES * logits.shape[1]))


class RowParams(NamedTuple):
    """How the next tokens of N rows are drawn, as tensors on their device.

    Attributes:
        seeds: ``[N, 2]`` int32, the `noise.seed_words` of each row.
        temperature: ``[N]`` fp32; 0 is greedy.
        top_k: ``[N]`` int64; V keeps all.
        top_p: ``[N]`` float64; 1 keeps all.
    """

    seeds: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor

    def pick(self, logits: Tensor, steps: Tensor, drawn: bool, cut: bool) -> tuple[Tensor, Tensor]:
        """`pick`, without anything that depends on the rows' values: for a CUDA graph.

        Args:
            logits: ``[N, V]``, unnormalised.
            steps: ``[N]``, which token of its text each is.
            drawn: Whether any row is sampled at all; otherwise all are greedy.
            cut: Whether any has a top_k or top_p.

        Returns:
            ``[N]`` token ids, and ``[N]`` the highest logits.
        """
        best, step = logits.max(dim=-1), _rows_at_a_time(logits)
        if not drawn:
            return best.indices, best.values
        if step < len(logits):
            parts = [slice(s, s + step) for s in range(0, len(logits), step)]
            some = [RowParams(*(x[s] for x in self)) for s in parts]
            mine = zip(some, parts, strict=True)
            picked = [one.pick(logits[s], steps[s], drawn, cut)[0] for one, s in mine]
            return torch.cat(picked), best.values
        greedy = self.temperature == 0
        kind = torch.finfo(logits.dtype)
        heat = self.temperature.clamp(kind.tiny, kind.max).masked_fill(greedy, 1.0)
        scores = (logits - best.values[:, None]) / heat[:, None]
        if cut:
            scores = self._cut(scores)
        noisy = scores + gumbel(self.seeds, steps, logits.shape[1])
        return torch.where(greedy, best.indices, noisy.argmax(dim=-1)), best.values

    def _cut(self, scores: Tensor) -> Tensor:
        """`apply_top_k_top_p` with a k and a p for each row."""
        best = scores.sort(dim=-1, descending=True).values
        ranks = torch.arange(scores.shape[1], device=scores.device)
        kept = ranks < self.top_k[:, None]  # [N, V]
        best = best.masked_fill(~kept, -torch.inf)
        p = (best - best.logsumexp(dim=-1, keepdim=True)).double().exp()
        inside = kept & ((p.cumsum(dim=-1) - p < self.top_p[:, None]) | (self.top_p[:, None] >= 1))
        # Of what is no number none is inside; it is found out later.
        last = best.gather(1, (inside.sum(dim=-1, keepdim=True) - 1).clamp_min_(0))
        return scores.masked_fill(scores < last, -torch.inf)


def apply_top_k_top_p(scores: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the top k tokens, then of these the top p.

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
    # Of what is no number none is inside; it is found out later.
    last = (inside.sum(dim=-1, keepdim=True) - 1).clamp_min_(0)
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
    """The Gumbel noise ``[N, V]`` of N draws, on the device of the logits."""
    words = [(*seed_words(params.seed), step) for params, step in draws]
    counters = to_device(torch.tensor(words, dtype=torch.int32), logits.device)
    return gumbel(counters[:, :2], counters[:, 2], logits.shape[1])
