"""A round of decoding: some tokens are drafted, all are judged in one pass, the right ones stand.

small_cpt, whose logits the fusion needs anyway, drafts k tokens, one by one. The other sources run
over the k + 1 positions at once. The fused distribution at each position says which token comes
(see `sampling`); drafts stand as far as they are these tokens, and the first that is not is
replaced. So every row gains between 1 and k + 1 tokens, the same ones that k = 0 gives one by one.

Rows gain different numbers of tokens. What one row rejects stays in the caches as a hole, and what
all rows reject is cut off. Invariant 4 holds: logits are kept for a chunk at most.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.ensemble import LogitView, Rows
from trimix_lm_eval.errors import blame
from trimix_lm_eval.fuser import Fuser
from trimix_lm_eval.sampling import Draw, Sampling, pick


class Pending(NamedTuple):
    """A row at the beginning of a round.

    Attributes:
        token: Its last token, which no source has seen yet.
        place: How many tokens have been generated for it.
        room: How many more may come, at least 1.
        sampling: How they are drawn.
    """

    token: int
    place: int
    room: int
    sampling: Sampling

    def draw(self, ahead: int) -> Draw:
        """How the token after ``ahead`` more is drawn."""
        return Draw(self.sampling, self.place + ahead)


class Verdict(NamedTuple):
    """What the fused distribution says at N positions, on the CPU.

    Attributes:
        tokens: The token that comes at each.
        weights: ``[N, S]`` source weights in force.
        finite: ``[N]`` whether the logits are numbers.
    """

    tokens: list[int]
    weights: Tensor
    finite: Tensor


class Gain(NamedTuple):
    """What a row gained in a round.

    Attributes:
        tokens: At least one.
        weights: ``[n, S]`` in force for each.
        tried: Drafts that were of use to this row.
        accepted: How many of them stood.
        refused: The first draft that did not stand; None if there is none.
    """

    tokens: list[int]
    weights: Tensor
    tried: int
    accepted: int
    refused: int | None = None

    def up_to(self, drawn: int) -> Gain:
        """What is left of it in a text that ends after so many of its tokens."""
        most = max(drawn - 1, 0) if drawn < len(self.tokens) else self.tried
        tried, accepted = min(self.tried, most), min(self.accepted, most)
        kept = self.tokens[:drawn]
        return self._replace(tokens=kept, tried=tried, accepted=accepted)


class Cost(NamedTuple):
    """Seconds of a round: of the drafter in so many passes, and of all the rest."""

    drafting: float
    passes: int
    judging: float


def judge_next(
    fuser: Fuser, view: LogitView, vectors: Tensor, draws: Sequence[Draw], *more: Tensor
) -> tuple[Verdict, list[list[int]]]:
    """Which token comes at each position: one synchronisation with the device.

    Args:
        fuser: The sources and the policy.
        view: N positions.
        vectors: ``[N, S]`` chosen source weights.
        draws: How each token is drawn.
        *more: ``[N]`` integers on the device that are to come along.

    Returns:
        The verdict, and ``more`` as lists.
    """
    tokens, tops, used = [], [], []
    for where, logits in view.chunks():
        fused, weights = fuser.fused(logits, vectors[where])
        best = fused.max(dim=-1)
        tokens.append(pick(fused, draws[where], best.indices))
        tops.append(best.values)
        used.append(weights)
    columns = [torch.cat(tokens), torch.cat(tops), *more]
    table = torch.cat(
        [torch.stack([c.double() for c in columns], dim=1), torch.cat(used).double()], dim=1
    ).cpu()
    finite = table[:, 1].isfinite()
    whole = [column.long().tolist() for column in table[:, : len(columns)].nan_to_num().unbind(1)]
    return Verdict(whole[0], table[:, len(columns) :], finite), whole[2:]


class Stopwatch:
    """Times of stretches of work, without waiting for a GPU until they are asked for.

    Args:
        device: Where the work is done, or comes together.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.marks: list[Any] = []
        self.lap()

    def lap(self) -> None:
        """A stretch ends here, and the next begins."""
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """The stretches; on a GPU all work must be done by now."""
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if self.on_gpu:
            self.marks[-1].synchronize()
            return [a.elapsed_time(b) / 1e3 for a, b in pairs]
        return [b - a for a, b in pairs]


class Round:
    """One round.

    Args:
        fuser: The sources and the policy.
        state: B rows, which grow by their new tokens.
        pending: Where each row stands.
        vectors: ``[B, S]`` chosen source weights.
        drafter: Index of the source that drafts; it runs on its own when ``k`` is 0, too, so that
            its cost is known.
        k: Tokens to draft per row.
    """

    def __init__(
        self,
        fuser: Fuser,
        state: Rows,
        pending: Sequence[Pending],
        vectors: Tensor,
        drafter: int,
        k: int,
    ) -> None:
        self.fuser, self.state, self.pending, self.vectors = fuser, state, pending, vectors
        self.drafter, self.k = drafter, k
        self.start = state.layout.slots
        # For a row with less room fewer drafts are of use; the rest is padding.
        self.limits = [min(k, row.room - 1) for row in pending]
        self.hidden: list[Tensor] = []  # S times [B, k + 1, H], of the drafter [B, k, H]
        self.watch = Stopwatch(fuser.ensemble.device)
        self.settling = 0.0

    def play(self) -> list[Gain]:
        """Draft, judge, and keep what stands."""
        k, state = self.k, self.state
        logits, drafts = self._draft()
        self.watch.lap()
        for s in range(len(state.caches)):
            if s != self.drafter:
                h = state.run(s, self.start)
                self.hidden.insert(s, h.unflatten(0, (len(self.pending), k + 1)))
        accepted = [0] * len(self.pending)
        refused: list[int | None] = [None] * len(self.pending)
        gained: list[list[int]] = [[] for _ in self.pending]
        weights: list[list[Tensor]] = [[] for _ in self.pending]
        if k:
            accepted, refused = self._compare(logits, drafts, gained, weights)
        self.watch.lap()
        whole = [row for row, stood in enumerate(accepted) if stood == k]
        if whole:
            self._go_on(whole, gained, weights)
        begun = time.perf_counter()  # small work that a host waits for, on a GPU too
        if k:
            counts = torch.tensor(accepted).to(state.layout.ids.device, non_blocking=True) + 1
            state.layout.keep(self.start, counts)
            state.trim(self.start + 1 + max(accepted))
        self.settling = time.perf_counter() - begun
        return [
            Gain(gained[row], torch.stack(weights[row]), limit, accepted[row], refused[row])
            for row, limit in enumerate(self.limits)
        ]

    def cost(self) -> Cost:
        """What the round took, once it is played."""
        drafting, judging, *last = self.watch.seconds()
        judging += self.settling
        if not last:
            return Cost(drafting, self.k, judging)
        return Cost(drafting + last[0], self.k + 1, judging + last[1])

    def _draft(self) -> tuple[Tensor | None, Tensor | None]:
        """Let the drafter write.

        Returns:
            Its logits ``[B * k, V]``, if they are few enough to be kept, and ``[B, k]`` drafts.
        """
        layout, ensemble = self.state.layout, self.fuser.ensemble
        device, rows = layout.ids.device, len(self.pending)
        valid = torch.tensor([[j <= most for j in range(self.k + 1)] for most in self.limits])
        # Not waiting for a GPU: what is copied is small, and staged at once.
        valid = valid.to(device, non_blocking=True)
        token = torch.tensor([row.token for row in self.pending]).to(device, non_blocking=True)
        keep = rows * self.k <= ensemble.logit_positions
        hidden, logits, drafts = [], [], []
        for j in range(self.k):
            layout.append(token[:, None], valid[:, j : j + 1])
            h = self.state.run(self.drafter, self.start + j)
            draws = [row.draw(j) for row in self.pending]
            parts = []
            for begin in range(0, rows, ensemble.logit_positions):
                where = slice(begin, begin + ensemble.logit_positions)
                part = ensemble.logits_of(self.drafter, h[where])
                parts.append(pick(part, draws[where]))
                if keep:
                    logits.append(part)
            token = torch.cat(parts).to(device)
            hidden.append(h)
            drafts.append(token)
        layout.append(token[:, None], valid[:, self.k :])
        if not self.k:
            self.hidden = [torch.empty(0)]
            return None, None
        self.hidden = [torch.stack(hidden, dim=1)]
        kept = torch.stack(logits, dim=1).flatten(0, 1) if keep else None
        return kept, torch.stack(drafts, dim=1)

    def _compare(
        self,
        logits: Tensor | None,
        drafts: Tensor | None,
        gained: list[list[int]],
        weights: list[list[Tensor]],
    ) -> tuple[list[int], list[int | None]]:
        """Judge the first k positions.

        Returns:
            Of each row how many drafts stand, and the first that does not.
        """
        k, ensemble = self.k, self.fuser.ensemble
        assert drafts is not None
        ready = {} if logits is None else {self.drafter: logits}
        view = LogitView(ensemble, [h[:, :k].flatten(0, 1) for h in self.hidden], ready)
        draws = [row.draw(j) for row in self.pending for j in range(k)]
        vectors = self.vectors.repeat_interleave(k, dim=0)
        flat = drafts.flatten().to(ensemble.device)
        verdict, (drafted,) = judge_next(self.fuser, view, vectors, draws, flat)
        accepted: list[int] = []
        refused: list[int | None] = []
        finite = verdict.finite.clone()
        for row, limit in enumerate(self.limits):
            at = row * k
            stood = 0
            while stood < limit and verdict.tokens[at + stood] == drafted[at + stood]:
                stood += 1
            # A row whose drafts all stand goes on at position k; else the next token is here.
            come = min(stood + 1, k)
            gained[row] += verdict.tokens[at : at + come]
            weights[row] += list(verdict.weights[at : at + come])
            finite[at + come : at + k] = True  # what follows a rejected draft is nobody's matter
            accepted.append(stood)
            refused.append(drafted[at + stood] if stood < limit else None)
        with blame(lambda position: position // k):
            view.check(finite)
        return accepted, refused

    def _go_on(
        self, whole: Sequence[int], gained: list[list[int]], weights: list[list[Tensor]]
    ) -> None:
        """The token after the last draft, of rows all of whose drafts stand."""
        last = self.state.run(self.drafter, self.start + self.k)  # [B, H]
        self.watch.lap()
        at = torch.tensor(whole)
        hidden = [
            (last if s == self.drafter else h[:, self.k])[at.to(h.device, non_blocking=True)]
            for s, h in enumerate(self.hidden)
        ]
        view = LogitView(self.fuser.ensemble, hidden)
        vectors = self.vectors[at.to(self.vectors.device, non_blocking=True)]
        draws = [self.pending[row].draw(self.k) for row in whole]
        verdict, _ = judge_next(self.fuser, view, vectors, draws)
        with blame(whole.__getitem__):
            view.check(verdict.finite)
        for row, token, weight in zip(whole, verdict.tokens, verdict.weights, strict=True):
            gained[row].append(token)
            weights[row].append(weight)
        self.watch.lap()
