"""Prompts of token ids in, generated token ids out. No text and no lm-eval here.

Rows stop one by one, each at its own stop; a finished row leaves the batch at once, and the next
prompt takes its place. A prompt's forward passes serve selection and generation alike.

Invariant 2: which token comes is a function of the fused distribution and of the row's own noise
(see `sampling`). Drafts (see `drafting`) only guess its value, so the text depends neither on them
nor on the batch, the order or the prompts let in on the way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.drafting import Gain, Pending, Round, judge_next
from trimix_lm_eval.ensemble import LogitView, Rows
from trimix_lm_eval.errors import blame
from trimix_lm_eval.fuser import Fuser, mean_choice
from trimix_lm_eval.prefill import (
    OUT_OF_MEMORY,
    Prompt,
    choice_of,
    free,
    give_way,
    prefill,
    readers_for,
)
from trimix_lm_eval.prefix import Trunk, walk
from trimix_lm_eval.readers import Choice
from trimix_lm_eval.sampling import Draw, Sampling
from trimix_lm_eval.speculation import Speculation

#: Who drafts.
DRAFTER = "small_cpt"
#: Caches with more slots than this times what is needed, and some, are packed.
_WASTE, _SOME = 1.125, 32


class Job(NamedTuple):
    """One prompt to be continued.

    Attributes:
        prompt: The context.
        max_new_tokens: Stop after so many, at least 1.
        ends: Token ids that end the text; they are not part of the result.
        stop: Told all tokens so far after each one; True stops the row.
        sampling: Greedy by default.
    """

    prompt: Prompt
    max_new_tokens: int
    ends: frozenset[int]
    stop: Callable[[list[int]], bool]
    sampling: Sampling = Sampling()


class Generated(NamedTuple):
    """A finished row.

    Attributes:
        ids: The new tokens, without an end token.
        choice: The weights that were used; where they are per token, their mean.
    """

    ids: list[int]
    choice: Choice


#: Told what a row gains: its index, how many tokens it has had before, and the gain. A row that
#: must be started anew for want of memory begins again at 0.
Observer = Callable[[int, int, Gain], None]


def generate(
    fuser: Fuser,
    jobs: Sequence[Job],
    batch_size: int,
    speculation: Speculation | None = None,
    observer: Observer | None = None,
) -> Iterator[tuple[int, Generated]]:
    """Continue prompts.

    Args:
        fuser: The sources and the policy.
        jobs: What to continue.
        batch_size: Rows in flight.
        speculation: Decides how much is drafted, and keeps the account; None drafts nothing.
        observer: Watches the rows grow, drafts and all; None if nobody does.

    Yields:
        (index, result), each as soon as it is done.

    Raises:
        TrimixError: Memory runs out with a single row in flight.
    """
    queue = _Queue(walk(fuser, [job.prompt for job in jobs]))
    flight = _Flight(fuser, jobs, speculation or Speculation("off"), observer)
    more = True
    while more:
        size = min(batch_size, fuser.ensemble.most_rows)
        out_of_memory = False
        try:
            flight.admit(queue, size)
            more = bool(flight.rows)
            flight.round(queue.waiting)
        except OUT_OF_MEMORY as error:
            # Rows in flight may be more than the next batch is to have.
            give_way(fuser.ensemble, max(1, min(size, flight.count)), error, queue.evict)
            out_of_memory = True
        yield from flight.landed()
        if out_of_memory:
            # Only now: the traceback held the tensors of the failed round alive.
            queue.again += flight.abandon()
            free()


class _Queue:
    """Prompts in the order in which they share what they begin with."""

    def __init__(self, groups: Iterator[tuple[Trunk, list[int]]]) -> None:
        self.groups = groups
        self.trunk, self.left = Trunk(), list[int]()
        self.again: list[int] = []

    def take(self, most: int) -> tuple[Trunk, list[int]] | None:
        """At most so many that share a trunk; None if there are no more."""
        if self.again:  # whatever they shared is gone
            taken, self.again = self.again[:most], self.again[most:]
            return Trunk(), taken
        if not self.left:
            self.trunk = Trunk()  # frees its cache before the next is made
            self.trunk, self.left = next(self.groups, (Trunk(), []))
        taken, self.left = self.left[:most], self.left[most:]
        return (self.trunk, taken) if taken else None

    @property
    def waiting(self) -> bool:
        """Whether prompts are left, as far as is known: those of one trunk are known together."""
        return bool(self.again or self.left)

    def evict(self) -> bool:
        """Free what prompts begin with; returns whether there was any."""
        return self.trunk.evict()


@dataclasses.dataclass(eq=False)
class _Row:
    """A text in the making."""

    index: int
    job: Job
    choice: Choice | None
    vector: list[float]
    used: Tensor
    tokens: list[int] = dataclasses.field(default_factory=list)
    drawn: int = 0

    @property
    def cached(self) -> int:
        """Tokens that the sources have seen: the last one is still to be fed."""
        return len(self.job.prompt.ids) + len(self.tokens) - 1

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self.job.max_new_tokens - len(self.tokens)

    @property
    def pending(self) -> Pending:
        """Where it stands."""
        return Pending(self.tokens[-1], len(self.tokens), self.room, self.job.sampling)

    def take(self, tokens: Sequence[int], weights: Tensor) -> bool:
        """Take tokens until the text ends; returns whether it did.

        Args:
            tokens: What comes.
            weights: ``[n, S]`` in force for each of them.
        """
        for token, weight in zip(tokens, weights, strict=True):
            self.used += weight
            self.drawn += 1
            if token in self.job.ends:
                return True
            self.tokens.append(token)
            if self.room == 0 or self.job.stop(self.tokens):
                return True
        return False


class _Flight:
    """The rows in flight."""

    def __init__(
        self,
        fuser: Fuser,
        jobs: Sequence[Job],
        speculation: Speculation,
        observer: Observer | None,
    ) -> None:
        self.fuser, self.jobs, self.speculation = fuser, jobs, speculation
        self.observer = observer
        names = fuser.ensemble.names
        # One source alone would draft for itself.
        self.may_draft = DRAFTER in names and len(names) > 1
        self.drafter = names.index(DRAFTER) if self.may_draft else 0
        self.rows: list[_Row] = []
        self.state: Rows | None = None
        self.starting: list[int] = []
        self.done: list[tuple[int, Generated]] = []

    @property
    def count(self) -> int:
        """Rows in flight or about to be."""
        return len(self.rows) + len(self.starting)

    def landed(self) -> list[tuple[int, Generated]]:
        """What has finished since this was asked last."""
        done, self.done = self.done, []
        return done

    def abandon(self) -> list[int]:
        """Give up all rows in flight; returns their indices, to be started anew."""
        indices = [*self.starting, *(row.index for row in self.rows)]
        self.rows, self.state, self.starting = [], None, []
        return indices

    # ---------------------------------------------------------------- rows come and go

    def admit(self, queue: _Queue, size: int) -> None:
        """Start prompts where rows are free.

        Not for each single row: to let one in copies the caches of all.
        """
        if self.rows and size - len(self.rows) < max(1, size // 4):
            return
        while len(self.rows) < size and (group := queue.take(size - len(self.rows))):
            trunk, self.starting = group
            self._start(trunk, self.starting)
            self.starting = []

    def _start(self, trunk: Trunk, indices: Sequence[int]) -> None:
        """Run prompts, choose their weights, and draw their first tokens."""
        fuser = self.fuser
        jobs = [self.jobs[i] for i in indices]
        prompts = [job.prompt for job in jobs]
        readers = readers_for(fuser, prompts)
        with blame(indices.__getitem__):
            begun = trunk.start(prompts, readers)
            state, hidden = prefill(
                fuser.ensemble, [trunk.rest(p) for p in prompts], readers, begun
            )
            choices = [choice_of(fuser, p, r) for p, r in zip(prompts, readers, strict=True)]
            used = torch.zeros(len(indices), len(hidden), dtype=torch.float64)
            rows = [
                _Row(i, job, choice, fuser.vector(choice), sums)
                for i, job, choice, sums in zip(indices, jobs, choices, used, strict=True)
            ]
            view = LogitView(fuser.ensemble, hidden)
            draws = [Draw(job.sampling, 0) for job in jobs]
            first, _ = judge_next(fuser, view, self._vectors(rows), draws)
            view.check(first.finite)
        staying = []
        for place, row in enumerate(rows):
            one = slice(place, place + 1)
            if self._take(row, Gain(first.tokens[one], first.weights[one], 0, 0)):
                self._land(row)
            else:
                staying.append(place)
        if not staying:
            return
        new = [rows[place] for place in staying]
        state = _packed(state, staying, new)
        if self.state is not None:
            state = _packed(self.state, range(len(self.rows)), self.rows).join(state)
        self.rows, self.state = [*self.rows, *new], state

    def _take(self, row: _Row, gain: Gain) -> bool:
        """Give a row what it gained; returns whether its text ended."""
        if self.observer is not None:
            self.observer(row.index, len(row.tokens), gain)
        return row.take(gain.tokens, gain.weights)

    def _land(self, row: _Row) -> None:
        """Put a finished row by."""
        mean = row.used / row.drawn
        choice = row.choice or mean_choice(self.fuser, mean[None])
        self.done.append((row.index, Generated(row.tokens, choice)))

    # ---------------------------------------------------------------- a round

    def round(self, waiting: bool) -> None:
        """Give every row at least one token.

        Args:
            waiting: Whether there are prompts to take the place of rows that end.
        """
        if self.state is None:
            return
        most = max(row.room for row in self.rows) - 1 if self.may_draft else 0
        k = self.speculation.length(len(self.rows), most, waiting)
        pending = [row.pending for row in self.rows]
        one = Round(self.fuser, self.state, pending, self._vectors(self.rows), self.drafter, k)
        with blame(lambda place: self.rows[place].index):
            gains = one.play()
        staying, kept = [], []
        for place, (row, gain) in enumerate(zip(self.rows, gains, strict=True)):
            before = row.drawn
            if self._take(row, gain):
                self._land(row)
            else:
                staying.append(place)
            kept.append(gain.up_to(row.drawn - before))
        rows = [self.rows[place] for place in staying]
        if not rows:
            self.rows, self.state = [], None
        elif len(rows) < len(self.rows) or _wasteful(self.state, rows):
            self.rows, self.state = rows, _packed(self.state, staying, rows)
        self.speculation.learn(k, kept, one.cost())

    def _vectors(self, rows: Sequence[_Row]) -> Tensor:
        """``[B, S]`` source weights."""
        vectors = torch.tensor([row.vector for row in rows])
        return vectors.to(self.fuser.ensemble.device, non_blocking=True)


def _packed(state: Rows, places: Sequence[int], rows: Sequence[_Row]) -> Rows:
    """Some rows of a batch, without holes that all of them could do without."""
    return state.fork(places, max(row.cached for row in rows))


def _wasteful(state: Rows, rows: Sequence[_Row]) -> bool:
    """Whether holes make up so much of the caches that packing them pays."""
    width = max(row.cached for row in rows)
    return state.layout.slots > width * _WASTE + _SOME
