"""A round of decoding: some tokens are drafted, all are judged in one pass, the right ones stand.

small_cpt, whose logits the fusion needs anyway, drafts k tokens, one by one. The other sources run
over the k + 1 positions at once. The fused distribution at each position says which token comes
(see `sampling`); drafts stand as far as they are these tokens, and the first that is not is
replaced. So every row gains between 1 and k + 1 tokens, the same ones that k = 0 gives one by one.

A row may speak with several voices: ways to weight the sources that have agreed on every token so
far. Each is judged by its own distribution over the same logits; where they come to differ, the row
gains several ways to go on.

Rows gain different numbers of tokens. What one row rejects stays in the caches as a hole, and what
all rows reject is cut off. Invariant 4 holds: logits are kept for a chunk at most.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.model_runner import Fuser, LogitView, blame
from trimix_lm_eval.engine.sampler import Draw, Sampling, pick
from trimix_lm_eval.engine.verdicts import Said, judge_next, together
from trimix_lm_eval.fusion.config import ResolvedFusion


class Pending(NamedTuple):
    """A row at the beginning of a round.

    Attributes:
        token: Its last token, which no source has seen yet.
        place: How many tokens have been generated for it.
        room: How many more may come, at least 1.
        sampling: How they are drawn.
        voices: Whose tokens they are, at least one.
    """

    token: int
    place: int
    room: int
    sampling: Sampling
    voices: tuple[ResolvedFusion, ...]

    def draw(self, ahead: int) -> Draw:
        """How the token after ``ahead`` more is drawn."""
        return Draw(self.sampling, self.place + ahead)


class Gain(NamedTuple):
    """What a row gained in a round, by the voices that agree on it.

    Attributes:
        tokens: At least one.
        weights: Of each voice ``[n, S]`` in force for each token.
        tried: Drafts that were of use to this row.
        accepted: How many of them stood.
        refused: The first draft that did not stand; None if there is none.
        voices: Which of the row's voices.
    """

    tokens: list[int]
    weights: list[Tensor]
    tried: int
    accepted: int
    refused: int | None = None
    voices: tuple[int, ...] = (0,)

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


class _Line:
    """What one voice of a row has gained so far."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.weights: list[Tensor] = []
        self.accepted = 0

    def take(self, said: Said, count: int) -> None:
        """Take the first tokens of what was said."""
        self.tokens += said.tokens[:count]
        self.weights += list(said.weights[:count])


class Round:
    """One round.

    Args:
        fuser: The sources.
        state: B rows, which grow by k + 1 slots: the last token of each and its drafts. What is to
            be kept of them is for the caller to say.
        pending: Where each row stands.
        drafter: Index of the source that drafts; it runs on its own when ``k`` is 0, too, so that
            its cost is known.
        k: Tokens to draft per row.
    """

    def __init__(
        self, fuser: Fuser, state: InputBatch, pending: Sequence[Pending], drafter: int, k: int
    ) -> None:
        self.fuser, self.state, self.pending = fuser, state, pending
        self.drafter, self.k = drafter, k
        self.start = state.table.slots
        # For a row with less room fewer drafts are of use; the rest is padding.
        self.limits = [min(k, row.room - 1) for row in pending]
        self.hidden: list[Tensor] = []  # S times [B, k + 1, H], of the drafter [B, k, H]
        self.lines = [[_Line() for _ in row.voices] for row in pending]
        self.drafted: list[list[int]] = [[] for _ in pending]
        self.watch = Stopwatch(fuser.ensemble.device)

    def play(self) -> list[list[Gain]]:
        """Draft and judge; returns what each row gains, one gain for each way to go on."""
        k, state = self.k, self.state
        logits, drafts = self._draft()
        self.watch.lap()
        for s in range(len(state.caches)):
            if s != self.drafter:
                h = state.run(s, self.start)
                self.hidden.insert(s, h.unflatten(0, (len(self.pending), k + 1)))
        if drafts is not None:
            self._compare(logits, drafts)
        self.watch.lap()
        whole = [
            row for row, mine in enumerate(self.lines) if any(line.accepted == k for line in mine)
        ]
        if whole:
            self._go_on(whole)
        return [self._ways(row) for row in range(len(self.pending))]

    def _ways(self, row: int) -> list[Gain]:
        """What a row gains: voices that say the same go on together."""
        gains = []
        for tokens, voices in together([line.tokens for line in self.lines[row]]):
            lines = [self.lines[row][voice] for voice in voices]
            accepted, limit = lines[0].accepted, self.limits[row]
            refused = self.drafted[row][accepted] if accepted < limit else None
            weights = [torch.stack(line.weights) for line in lines]
            gains.append(Gain(tokens, weights, limit, accepted, refused, tuple(voices)))
        return gains

    def cost(self) -> Cost:
        """What the round took, once it is played."""
        drafting, judging, *last = self.watch.seconds()
        if not last:
            return Cost(drafting, self.k, judging)
        return Cost(drafting + last[0], self.k + 1, judging + last[1])

    def _draft(self) -> tuple[Tensor | None, Tensor | None]:
        """Let the drafter write.

        Returns:
            Its logits ``[B * k, V]``, if they are few enough to be kept, and ``[B, k]`` drafts.
        """
        table, ensemble = self.state.table, self.fuser.ensemble
        device, rows = table.ids.device, len(self.pending)
        valid = torch.tensor([[j <= most for j in range(self.k + 1)] for most in self.limits])
        # Not waiting for a GPU: what is copied is small, and staged at once.
        valid = valid.to(device, non_blocking=True)
        token = torch.tensor([row.token for row in self.pending]).to(device, non_blocking=True)
        keep = rows * self.k <= ensemble.logit_positions
        hidden, logits, drafts = [], [], []
        for j in range(self.k):
            table.append(token[:, None], valid[:, j : j + 1])
            h = self.state.run(self.drafter, self.start + j)
            draws = [row.draw(j) for row in self.pending]
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

    def _compare(self, logits: Tensor | None, drafts: Tensor) -> None:
        """Judge the first k positions: how many drafts stand with each voice, and what follows.

        Args:
            logits: ``[B * k, V]`` of the drafter, if they were kept.
            drafts: ``[B, k]``.
        """
        k, ensemble = self.k, self.fuser.ensemble
        ready = {} if logits is None else {self.drafter: logits}
        view = LogitView(ensemble, [h[:, :k].flatten(0, 1) for h in self.hidden], ready)
        draws = [[row.draw(j) for j in range(k)] for row in self.pending]
        voices = [row.voices for row in self.pending]
        flat = drafts.flatten().to(ensemble.device)
        verdict = judge_next(self.fuser, view, voices, draws, flat)
        (drafted,) = verdict.more
        finite = verdict.finite.clone()
        for row, limit in enumerate(self.limits):
            mine = self.drafted[row] = drafted[row * k : (row + 1) * k]
            most = 0
            for line, said in zip(self.lines[row], verdict.said[row], strict=True):
                while line.accepted < limit and said.tokens[line.accepted] == mine[line.accepted]:
                    line.accepted += 1
                # A voice whose drafts all stand goes on at position k; else the next token is here.
                come = min(line.accepted + 1, k)
                line.take(said, come)
                most = max(most, come)
            finite[row * k + most : (row + 1) * k] = True  # behind the last that counts
        with blame(lambda position: position // k):
            view.check(finite)

    def _go_on(self, whole: Sequence[int]) -> None:
        """The token after the last draft, of rows with voices for which all drafts stand."""
        last = self.state.run(self.drafter, self.start + self.k)  # [B, H]
        self.watch.lap()
        at = torch.tensor(whole)
        hidden = [
            (last if s == self.drafter else h[:, self.k])[at.to(h.device, non_blocking=True)]
            for s, h in enumerate(self.hidden)
        ]
        view = LogitView(self.fuser.ensemble, hidden)
        lines = [[x for x in self.lines[row] if x.accepted == self.k] for row in whole]
        voices = [
            [
                v
                for v, x in zip(self.pending[row].voices, self.lines[row], strict=True)
                if x.accepted == self.k
            ]
            for row in whole
        ]
        draws = [[self.pending[row].draw(self.k)] for row in whole]
        verdict = judge_next(self.fuser, view, voices, draws)
        with blame(whole.__getitem__):
            view.check(verdict.finite)
        for mine, said in zip(lines, verdict.said, strict=True):
            for line, one in zip(mine, said, strict=True):
                line.take(one, 1)
        self.watch.lap()
