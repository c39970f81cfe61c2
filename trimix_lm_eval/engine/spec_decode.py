"""Speculative decoding: a step drafts some tokens, verifies all in one pass, and keeps the right.

small_cpt, whose logits the fusion needs anyway, proposes k tokens, one by one. The other sources
run over the k + 1 positions at once. The fused distribution at each position says which token comes
(see `sampler`); drafts are accepted as far as they are these tokens, and the first that is not is
replaced. So every sequence gains between 1 and k + 1 tokens, the same ones that k = 0 gives one by
one. If a draft is accepted with probability a, whatever came before it, a sequence gains

    tokens(k) = (1 - a^(k+1)) / (1 - a)

tokens (Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", equation
1). What a pass over n tokens costs is measured, step by step; the k with the most tokens per second
is taken, 0 among them: then every source runs on one token, as without speculation. Which k is
taken changes the time, never the tokens.

The branches of a sequence are verified each by its own distribution over the same logits; where
they come to differ, the sequence gains several forks. Sequences gain different numbers of tokens:
what one of them rejects stays in the caches as a hole, and what all reject is cut off. Invariant 4
holds: logits are kept for a chunk at most.

Longer than most modules: what a step proposes, verifies and measures decides the length of the next
draft, so the step and the choice of k read each other's records.
"""

from __future__ import annotations

import collections.abc as abc
import time
from bisect import bisect_left
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.model_runner import Fuser, LogitView, blame
from trimix_lm_eval.engine.sampler import SampledTokens, pick, sample
from trimix_lm_eval.engine.sequence import NewTokens, Sequence, followed, grouped
from trimix_lm_eval.fusion.logits import to_device

#: Draft lengths to choose from; and where each is captured, which has its price.
LENGTHS = (0, 1, 2, 3, 4, 5, 6, 8, 10)
CAPTURED_LENGTHS = (0, 1, 2, 4, 8)
#: Steps after which half of what was seen is forgotten.
_HALF_LIFE = 64
#: One step in so many tries a neighbour of the best length, to see whether things have changed.
_TRY_EVERY = 24
#: Steps without drafts before several sequences try some.
_TRY_LATE = 10
#: How much faster drafting must look before it is done, if sequences are several. They gain
#: different numbers of tokens, and the time is that of the slowest: little is lost by it where
#: prompts wait to take the place of those that are done, and much where none does.
_MARGIN_WAITING, _MARGIN_LAST = 1.05, 1.3


class Cost(NamedTuple):
    """Seconds of a step: of the drafter in so many passes, and of all the rest.

    ``lasting`` is whether the same step will cost as much again: not if it is yet to be captured.
    """

    drafting: float
    passes: int
    verifying: float
    lasting: bool = True


class Stopwatch:
    """Times of pieces of work, without waiting for a GPU until they are asked for.

    Args:
        device: Where the work is done, or comes together.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu, self.device = device.type == "cuda", device
        self.marks: list[Any] = []
        self.lap()

    def lap(self) -> None:
        """A piece of work ends here, and the next begins."""
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            # Without a stream it would be that of the current device, where nothing may run.
            event.record(torch.cuda.current_stream(self.device))
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """The times; on a GPU all work must be done by now."""
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if self.on_gpu:
            self.marks[-1].synchronize()
            return [a.elapsed_time(b) / 1e3 for a, b in pairs]
        return [b - a for a, b in pairs]


class _Gained:
    """What one branch of a sequence has gained in a step so far."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.weights: list[Tensor] = []
        self.accepted = 0

    def take(self, sampled: SampledTokens, count: int) -> None:
        """Take the first tokens of what was sampled."""
        self.token_ids += sampled.token_ids[:count]
        self.weights += list(sampled.weights[:count])


class DecodingStep:
    """One step of decoding.

    Args:
        fuser: The sources.
        batch: B rows, which grow by k + 1 slots: the last token of each and its drafts. What is to
            be kept of them is for the caller to say.
        sequences: The sequence of each row.
        drafter: Index of the source that drafts; it runs on its own when ``k`` is 0, too, so that
            its cost is known.
        k: Tokens to draft per sequence.
    """

    def __init__(
        self,
        fuser: Fuser,
        batch: InputBatch,
        sequences: abc.Sequence[Sequence],
        drafter: int,
        k: int,
    ) -> None:
        self.fuser, self.batch, self.sequences = fuser, batch, sequences
        self.drafter, self.k = drafter, k
        self.fusions = [one.fusions for one in sequences]
        self.start = batch.table.slots
        # For a sequence that ends sooner fewer drafts are of use; the rest is padding.
        self.limits = [min(k, one.remaining_tokens - 1) for one in sequences]
        self.hidden: list[Tensor] = []  # S times [B, k + 1, H], of the drafter [B, k, H]
        self.gained = [[_Gained() for _ in mine] for mine in self.fusions]
        self.drafted: list[list[int]] = [[] for _ in sequences]
        self.watch = Stopwatch(fuser.ensemble.device)

    def run(self) -> list[list[NewTokens]]:
        """Propose and verify; returns the new tokens of each sequence, once for each fork."""
        k, batch = self.k, self.batch
        if k:
            batch.begin_draft()
        else:
            batch.end_draft()
        logits, drafts = self._propose()
        self.watch.lap()
        for s in range(len(batch.caches)):
            if s != self.drafter:
                h = batch.run(s, self.start)
                self.hidden.insert(s, h.unflatten(0, (len(self.sequences), k + 1)))
        if drafts is not None:
            self._verify(logits, drafts)
        self.watch.lap()
        whole = [r for r, mine in enumerate(self.gained) if any(x.accepted == k for x in mine)]
        if whole:
            self._sample_last(whole)
        return [self._forks(row) for row in range(len(self.sequences))]

    def _forks(self, row: int) -> list[NewTokens]:
        """What a sequence gains: branches with equal tokens go on together."""
        forks = []
        for tokens, branches in grouped([one.token_ids for one in self.gained[row]]):
            mine = [self.gained[row][branch] for branch in branches]
            accepted, limit = mine[0].accepted, self.limits[row]
            rejected = self.drafted[row][accepted] if accepted < limit else None
            weights = [torch.stack(one.weights) for one in mine]
            forks.append(NewTokens(tokens, weights, limit, accepted, rejected, tuple(branches)))
        return forks

    def cost(self) -> Cost:
        """What the step took, once it has run."""
        drafting, verifying, *last = self.watch.seconds()
        if not last:
            return Cost(drafting, self.k, verifying)
        return Cost(drafting + last[0], self.k + 1, verifying + last[1])

    def _propose(self) -> tuple[Tensor | None, Tensor | None]:
        """Let the drafter write.

        Returns:
            Its logits ``[B * k, V]``, if they are few enough to be kept, and ``[B, k]`` drafts.
        """
        table, ensemble = self.batch.table, self.fuser.ensemble
        device, rows = table.ids.device, len(self.sequences)
        valid = torch.tensor([[j <= most for j in range(self.k + 1)] for most in self.limits])
        last = torch.tensor([one.token_ids[-1] for one in self.sequences])
        token = to_device(last, device)
        keep = rows * self.k <= ensemble.logit_positions
        hidden, logits, drafts = [], [], []
        for j in range(self.k):
            table.append(token[:, None], valid[:, j : j + 1])
            h = self.batch.run(self.drafter, self.start + j)
            draws = [one.draw(j) for one in self.sequences]
            parts = []
            for begin in range(0, rows, ensemble.logit_positions):
                where = slice(begin, begin + ensemble.logit_positions)
                part = ensemble.compute_logits(self.drafter, h[where])
                parts.append(pick(part, draws[where]))
                if keep:
                    logits.append(part)
            token = torch.cat(parts).to(device)
            hidden.append(h)
            drafts.append(token)
        table.append(token[:, None], valid[:, self.k :])
        if not self.k:
            self.hidden = [torch.empty(0)]
            return None, None
        self.hidden = [torch.stack(hidden, dim=1)]
        kept = torch.stack(logits, dim=1).flatten(0, 1) if keep else None
        return kept, torch.stack(drafts, dim=1)

    def _verify(self, logits: Tensor | None, drafts: Tensor) -> None:
        """Verify the first k positions: how many drafts each branch accepts, and what follows.

        Args:
            logits: ``[B * k, V]`` of the drafter, if they were kept.
            drafts: ``[B, k]``.
        """
        k, ensemble = self.k, self.fuser.ensemble
        ready = {} if logits is None else {self.drafter: logits}
        view = LogitView(ensemble, [h[:, :k].flatten(0, 1) for h in self.hidden], ready)
        draws = [[one.draw(j) for j in range(k)] for one in self.sequences]
        output = sample(self.fuser, view, self.fusions, draws, drafts.flatten().to(ensemble.device))
        (drafted,) = output.extra
        finite = output.finite.clone()
        for row, limit in enumerate(self.limits):
            mine = self.drafted[row] = drafted[row * k : (row + 1) * k]
            most = 0
            for one, sampled in zip(self.gained[row], output.sampled[row], strict=True):
                tokens = sampled.token_ids
                while one.accepted < limit and tokens[one.accepted] == mine[one.accepted]:
                    one.accepted += 1
                # A branch that accepts all drafts goes on at k; else the next token is here.
                count = min(one.accepted + 1, k)
                one.take(sampled, count)
                most = max(most, count)
            finite[row * k + most : (row + 1) * k] = True  # behind the last that counts
        with blame(lambda position: position // k):
            view.check(finite)

    def _sample_last(self, whole: abc.Sequence[int]) -> None:
        """The token after the last draft, of sequences with branches that accept all drafts."""
        last = self.batch.run(self.drafter, self.start + self.k)  # [B, H]
        self.watch.lap()
        at = torch.tensor(whole)
        ends = [last if s == self.drafter else h[:, self.k] for s, h in enumerate(self.hidden)]
        hidden = [h[to_device(at, h.device)] for h in ends]
        view = LogitView(self.fuser.ensemble, hidden)
        pairs = [list(zip(self.fusions[row], self.gained[row], strict=True)) for row in whole]
        pairs = [[(f, one) for f, one in mine if one.accepted == self.k] for mine in pairs]
        fusions = [[followed(fusion, one.weights) for fusion, one in mine] for mine in pairs]
        draws = [[self.sequences[row].draw(self.k)] for row in whole]
        output = sample(self.fuser, view, fusions, draws)
        with blame(whole.__getitem__):
            view.check(output.finite)
        for mine, some in zip(pairs, output.sampled, strict=True):
            for (_, one), sampled in zip(mine, some, strict=True):
                one.take(sampled, 1)
        self.watch.lap()


class _Costs:
    """Seconds of a pass by its number of tokens: measured, and between measurements a line."""

    def __init__(self) -> None:
        self.seen: dict[int, list[float]] = {}

    def add(self, tokens: int, seconds: float) -> None:
        """One more measurement; the median of the last five counts."""
        self.seen.setdefault(tokens, []).append(seconds)
        del self.seen[tokens][:-5]

    def __call__(self, tokens: int) -> float:
        known = sorted(self.seen)
        if tokens in self.seen or len(known) < 2:
            nearest = tokens if tokens in self.seen else known[0]
            return self._median(nearest)
        at = min(max(bisect_left(known, tokens), 1), len(known) - 1)
        low, high = known[at - 1], known[at]
        slope = max(0.0, (self._median(high) - self._median(low)) / (high - low))
        return max(0.0, self._median(low) + slope * (tokens - low))

    def _median(self, tokens: int) -> float:
        values = sorted(self.seen[tokens])
        return values[(len(values) - 1) // 2]


class SpecDecodingStats(NamedTuple):
    """What came of drafting so far.

    Attributes:
        num_steps: Steps of decoding.
        num_sequences: Sequences in them, counted anew in each step, and once for each fork.
        num_draft_tokens: Tokens drafted.
        num_accepted_tokens: Drafts that were accepted.
        num_verified_tokens: Drafts up to the first of a sequence that was not accepted.
    """

    num_steps: int = 0
    num_sequences: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_verified_tokens: int = 0

    def plus(self, other: SpecDecodingStats) -> SpecDecodingStats:
        """Both together."""
        return SpecDecodingStats(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Speculation:
    """Chooses draft lengths and keeps the statistics.

    Args:
        mode: ``auto``, ``off``, or a fixed number of drafts.
    """

    def __init__(self, mode: str | int = "auto") -> None:
        self.mode = mode
        self.stats = SpecDecodingStats()
        #: Steps whose cost is known.
        self._measured = 0
        self._hits, self._trials = 4.0, 5.0  # as good as most drafters are, until known better
        self._draft, self._verify = _Costs(), _Costs()

    def draft_length(
        self,
        rows: int,
        most: int,
        waiting: bool = True,
        lengths: abc.Sequence[int] = LENGTHS,
    ) -> int:
        """How many tokens to draft.

        Args:
            rows: For how many sequences.
            most: At most so many for each.
            waiting: Whether prompts wait to take the place of sequences that are done.
            lengths: What may be chosen by ``auto``, in ascending order.
        """
        if self.mode == "off" or most < 1:
            return 0
        if self.mode != "auto":
            return min(int(self.mode), most)
        possible = [k for k in lengths if k <= most]
        steps = self._measured
        # Some of the first steps find out what a pass with drafts and one without cost; two each,
        # since the first time something new is run costs more. One sequence has most to gain, and
        # tries at once; several try later, since short texts may be done before it is made up for.
        trial, first = (0, 4) if rows == 1 else (_TRY_LATE, 2)
        if steps < trial + 4:
            return min(possible[-1], first) if trial <= steps < trial + 2 else 0
        best = max(possible, key=lambda k: self.rate(k, rows))
        margin = 1.0 if rows == 1 else _MARGIN_WAITING if waiting else _MARGIN_LAST
        if self.rate(best, rows) < margin * self.rate(0, rows):
            best = 0
        if steps % _TRY_EVERY == 0:
            step = 1 if (steps // _TRY_EVERY) % 2 else -1
            return possible[min(max(possible.index(best) + step, 0), len(possible) - 1)]
        return best

    def rate(self, k: int, rows: int) -> float:
        """Expected tokens per second with k drafts."""
        a = self._hits / self._trials
        gained = sum(a**i for i in range(k + 1))
        # The drafter runs on the last draft only if some sequence accepts it.
        passes = k + 1 - (1 - a**k) ** rows
        seconds = passes * self._draft(rows) + self._verify(rows * (k + 1))
        return rows * gained / max(seconds, 1e-9)

    def learn(self, k: int, rows: int, new: abc.Sequence[NewTokens], cost: Cost) -> None:
        """Take account of a step.

        Args:
            k: Drafts per sequence.
            rows: Sequences in the batch.
            new: What they gained; of a sequence that forked several.
            cost: What it took.
        """
        drafted = sum(one.num_draft_tokens for one in new)
        accepted = sum(one.num_accepted_tokens for one in new)
        # Behind the first draft that was rejected nobody knows: it counts as no trial.
        trials = sum(min(one.num_accepted_tokens + 1, one.num_draft_tokens) for one in new)
        self.stats = self.stats.plus(SpecDecodingStats(1, len(new), drafted, accepted, trials))
        fade = 0.5 ** (1 / _HALF_LIFE) if trials else 1.0
        self._hits = self._hits * fade + accepted
        self._trials = self._trials * fade + trials
        if not cost.lasting:
            return
        self._measured += 1
        if cost.passes:
            self._draft.add(rows, cost.drafting / cost.passes)
        self._verify.add(rows * (k + 1), cost.verifying)

    def summary(self, stats: SpecDecodingStats | None = None) -> dict[str, Any]:
        """What a run's results tell of it.

        Args:
            stats: Of all processes; None is this one's own.

        Returns:
            ``acceptance``: share of the drafts that were accepted among those verified (None
            without drafts); ``draft_length``: drafts per sequence and step, on average;
            ``rounds``: decoding steps; ``tokens_per_round``: tokens a sequence gained per step.
        """
        steps, rows, drafted, accepted, verified = stats or self.stats
        return {
            "mode": self.mode,
            "rounds": steps,
            "draft_length": round(drafted / rows, 3) if rows else 0.0,
            "acceptance": round(accepted / verified, 4) if verified else None,
            "tokens_per_round": round(1 + accepted / rows, 3) if rows else None,
        }
