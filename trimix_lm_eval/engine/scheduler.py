"""Prompts of token ids in, generated token ids out, for all configs at once. No text, no lm-eval.

Rows stop one by one, each at its own stop; a finished row leaves the batch at once, and the next
prompt takes its place. A prompt's forward passes serve selection and generation alike.

What several configs write after one prompt is one row as long as they agree on every token, and is
run once. Where they differ the row splits; all its ways have the prompt's cache in common, so that
more of them fit into the memory that as many prompts would take. Ways that find no room wait, and
go on from the prompt when rows are free.

Invariant 2: which token comes is a function of the fused distribution and of the row's own noise
(see `sampling`). Drafts (see `drafting`) only guess its value, so the text depends neither on them
nor on the batch, the order, the other fusion configs or the prompts let in on the way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from trimix_lm_eval.engine.drafting import Gain, Round
from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.memory import OUT_OF_MEMORY, halve_batch_size, release_memory
from trimix_lm_eval.engine.model_runner import Fuser, LogitView, blame, mean_choice
from trimix_lm_eval.engine.prefill import (
    PrefixNode,
    PrefixTree,
    choices_of,
    collectors_for,
    padded,
    prefill,
)
from trimix_lm_eval.engine.sampler import Draw
from trimix_lm_eval.engine.sequence import (
    Branch,
    CompletionOutput,
    ForkPoint,
    GenerationRequest,
    Row,
)
from trimix_lm_eval.engine.speculation import Speculation
from trimix_lm_eval.engine.verdicts import judge_next, together
from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.fusion.config import ResolvedFusion

#: Who drafts.
DRAFTER = "small_cpt"
#: Caches with more slots than this times what is needed, and some, are packed.
_WASTE, _SOME = 1.125, 32
#: Rows per row that was asked for, at most, where they have prompts in common.
_WAYS = 8


#: (index of the job, index of the fusion config, text)
Found = tuple[int, int, CompletionOutput]
#: Told what a row gains, in a run of one config: its index, how many tokens it has had before, and
#: the gain. A row that must be started anew for want of memory begins again at 0.
Observer = Callable[[int, int, Gain], None]


def generate(
    fuser: Fuser,
    jobs: Sequence[GenerationRequest],
    batch_size: int,
    speculation: Speculation | None = None,
    observer: Observer | None = None,
) -> Iterator[Found]:
    """Continue prompts.

    Args:
        fuser: The sources and the fusion configs.
        jobs: What to continue.
        batch_size: Rows in flight.
        speculation: Decides how much is drafted, and keeps the account; None drafts nothing.
        observer: Watches the rows grow, drafts and all; None if nobody does.

    Yields:
        (index of the job, index of the fusion config, text), each as soon as it is done.

    Raises:
        TrimixError: Memory runs out with a single row in flight.
    """
    queue = _Queue(PrefixTree(fuser, [job.prompt for job in jobs]).walk())
    flight = _Flight(fuser, jobs, speculation or Speculation("off"), observer)
    more = True
    while more:
        size = min(batch_size, fuser.ensemble.most_rows)
        out_of_memory = False
        try:
            flight.admit(queue, size)
            more = bool(flight.rows)
            flight.round(queue.waiting, size)
        except OUT_OF_MEMORY as error:
            if flight.count > size and flight.ways > 1:
                flight.ways //= 2
            else:  # rows in flight may be more than the next batch is to have
                halve_batch_size(
                    fuser.ensemble, max(1, min(size, flight.count)), error, queue.evict
                )
            out_of_memory = True
        yield from flight.landed()
        if out_of_memory:
            # Only now: the traceback held the tensors of the failed round alive.
            queue.again += flight.abandon()
            release_memory()


class _Queue:
    """Prompts in the order in which they share what they begin with."""

    def __init__(self, groups: Iterator[tuple[PrefixNode, list[int]]]) -> None:
        self.groups = groups
        self.trunk, self.left = PrefixNode(), list[int]()
        self.again: list[int] = []

    def take(self, most: int) -> tuple[PrefixNode, list[int]] | None:
        """At most so many that share a trunk; None if there are no more."""
        if self.again:  # whatever they shared is gone
            taken, self.again = self.again[:most], self.again[most:]
            return PrefixNode(), taken
        if not self.left:
            self.trunk = PrefixNode()  # frees its cache before the next is made
            self.trunk, self.left = next(self.groups, (PrefixNode(), []))
        taken, self.left = self.left[:most], self.left[most:]
        return (self.trunk, taken) if taken else None

    @property
    def waiting(self) -> bool:
        """Whether prompts are left, as far as is known: those of one trunk are known together."""
        return bool(self.again or self.left)

    def evict(self) -> bool:
        """Free what prompts begin with; returns whether there was any."""
        return self.trunk.evict()


class _Flight:
    """The rows in flight."""

    def __init__(
        self,
        fuser: Fuser,
        jobs: Sequence[GenerationRequest],
        speculation: Speculation,
        observer: Observer | None,
    ) -> None:
        self.fuser, self.jobs, self.speculation = fuser, jobs, speculation
        self.observer = observer
        names = fuser.ensemble.names
        # One source alone would draft for itself.
        self.may_draft = DRAFTER in names and len(names) > 1
        self.drafter = names.index(DRAFTER) if self.may_draft else 0
        #: Rows per row that was asked for, at most.
        self.ways = _WAYS if len(fuser.configs) > 1 and fuser.ensemble.shares_prefixes else 1
        #: Tokens of the longest prompt with its text, and of the longest text.
        self.longest = max((len(j.prompt.ids) + j.max_new_tokens for j in jobs), default=0)
        self.text = max((job.max_new_tokens for job in jobs), default=1)
        self.rows: list[Row] = []
        self.state: InputBatch | None = None
        #: Texts that found no room, to be taken up again.
        self.waiting: list[Row] = []
        self.starting: list[int] = []
        self.resuming = 0
        #: By job, the fusion configs whose texts are written: a job may have to be started again.
        self.finished: dict[int, set[int]] = {}
        self.done: list[Found] = []

    @property
    def count(self) -> int:
        """Rows in flight or about to be."""
        return len(self.rows) + len(self.starting) + self.resuming

    def landed(self) -> list[Found]:
        """What has finished since this was asked last."""
        done, self.done = self.done, []
        return done

    def abandon(self) -> list[int]:
        """Give up all texts that are not finished; returns their jobs, to be started anew."""
        indices = [*self.starting, *(row.index for row in [*self.rows, *self.waiting])]
        self.rows, self.waiting, self.state = [], [], None
        self.starting, self.resuming = [], 0
        everyone = len(self.fuser.configs)
        return [i for i in dict.fromkeys(indices) if len(self.finished.get(i, ())) < everyone]

    # ---------------------------------------------------------------- rows come and go

    def room(self, size: int, new: Sequence[Row] = ()) -> int:
        """Rows that may still come.

        As many tokens may be held as ``size`` rows with the longest prompt and text would hold.

        Args:
            size: Rows that were asked for.
            new: Prompts about to come.
        """
        more = size - len(self.rows)
        if self.ways == 1:
            return more
        held = {row.index: len(row.job.prompt.ids) for row in [*self.rows, *self.waiting, *new]}
        own = sum(row.job.max_new_tokens for row in self.rows)
        left = size * self.longest - sum(held.values()) - own
        return min(max(left // self.text, more), self.ways * size - len(self.rows))

    def admit(self, queue: _Queue, size: int) -> None:
        """Start prompts, or take up texts that wait, where rows are free.

        Not for each single row: to let one in copies the caches of all.
        """
        if self.rows and self.room(size) < max(1, max(size, len(self.rows)) // 4):
            return
        while self.waiting and (room := self.room(size)) > 0:
            self._resume(room)
        # Where rows split, a few prompts make many rows within a few tokens.
        left = max(1, size // 4) if self.ways > 1 else size
        while (left > 0 or not self.rows) and len(self.rows) < size and not self.waiting:
            group = queue.take(min(max(left, 1), size - len(self.rows)))
            if group is None:
                return
            trunk, self.starting = group
            left -= len(self.starting)
            self._start(trunk, self.starting, size)
            self.starting = []

    def _start(self, trunk: PrefixNode, indices: Sequence[int], size: int) -> None:
        """Run prompts, choose their weights, and draw their first tokens."""
        fuser = self.fuser
        prompts = [self.jobs[i].prompt for i in indices]
        readers = collectors_for(fuser, prompts)
        with blame(indices.__getitem__):
            begun = trunk.start(prompts, readers)
            state, hidden = prefill(
                fuser.ensemble, [trunk.rest(p) for p in prompts], readers, begun
            )
            rows = [
                Row(i, self.jobs[i], self._writers(i, choices_of(fuser, prompt, mine)))
                for i, prompt, mine in zip(indices, prompts, readers, strict=True)
            ]
            view = LogitView(fuser.ensemble, hidden)
            draws = [[Draw(row.job.sampling, 0)] for row in rows]
            first = judge_next(fuser, view, [row.voices for row in rows], draws)
            view.check(first.finite)
        if any(len(row.writers) > 1 for row in rows):
            state = state.fork_shared(range(len(rows)))  # however many ways a text goes, once each
        ways: list[tuple[int, Row]] = []
        for place, (row, said) in enumerate(zip(rows, first.said, strict=True)):
            if len(row.writers) > 1:
                row.stem = ForkPoint(state, place)
            for tokens, voices in together([one.tokens for one in said]):
                weights = [said[voice].weights for voice in voices]
                way, _ = self._take(row, Gain(tokens, weights, 0, 0, None, tuple(voices)))
                ways += [(place, way)] if way.writers else []
        staying = self._with_room(ways, self.room(size, rows))
        if staying:
            cached = [row.cached for _, row in staying]
            new = state.fork([place for place, _ in staying], cached)
            self._join(new, [row for _, row in staying])

    def _writers(self, index: int, choices: Sequence[Choice | None]) -> list[Branch]:
        """Who writes after a prompt: one writer for fusion configs that cannot differ."""
        writers: dict[tuple[ResolvedFusion, frozenset[int]], Branch] = {}
        for i, choice in enumerate(choices):
            if i not in self.finished.get(index, ()):
                voice = ResolvedFusion(tuple(self.fuser.vector(choice)), self.fuser.processors[i])
                ends = self.jobs[index].ends[i]
                zero = torch.zeros(len(voice.vector), dtype=torch.float64)
                writer = writers.setdefault((voice, ends), Branch(voice, ends, {}, zero))
                writer.choices[i] = choice
        return list(writers.values())

    def _with_room(self, ways: Sequence[tuple[int, Row]], room: int) -> list[tuple[int, Row]]:
        """As many as there is room for; the others wait, if they can be taken up again."""
        staying: list[tuple[int, Row]] = []
        for place, row in ways:
            if len(row.writers) == 1 and len(staying) < room:
                row.stem = None  # it will not split, nor have to wait
            if len(staying) < room or row.stem is None:
                staying.append((place, row))
            else:
                self.waiting.append(row)
        return staying

    def _resume(self, room: int) -> None:
        """Take up texts that wait: their tokens so far run after their prompts at once."""
        some = self.waiting[:room]
        stem = some[0].stem
        assert stem is not None
        some = [row for row in some if row.stem is not None and row.stem.state is stem.state]
        places = [row.stem.place for row in some if row.stem is not None]
        self.resuming = len(some)
        begun = stem.state.fork(places)
        ids, valid = padded([row.tokens[:-1] for row in some])
        for _ in begun.feed(ids, valid, torch.zeros_like(valid)):
            pass
        self.waiting = [row for row in self.waiting if row not in some]
        self.resuming = 0
        for row in some:
            if len(row.writers) == 1:
                row.stem = None
        self._join(begun, some)

    def _join(self, new: InputBatch, rows: Sequence[Row]) -> None:
        """Let more rows join those in flight."""
        if self.state is not None:
            cached = [row.cached for row in self.rows]
            new = self.state.fork(range(len(self.rows)), cached).concat(new)
        self.rows, self.state = [*self.rows, *rows], new

    def _take(self, row: Row, gain: Gain) -> tuple[Row, int]:
        """Give some writers of a row what they gained.

        Returns:
            The row as they go on, without writers if nobody does, and how many tokens were drawn.
        """
        if self.observer is not None:
            self.observer(row.index, len(row.tokens), gain)
        way = row.way(gain)
        landed, drawn = way.take(gain)
        for writer, ids in landed:
            for config, choice in writer.choices.items():
                found = choice or mean_choice(self.fuser, (writer.used / writer.drawn)[None])
                self.finished.setdefault(row.index, set()).add(config)
                self.done.append((row.index, config, CompletionOutput(ids, found)))
        return way, drawn

    # ---------------------------------------------------------------- a round

    def round(self, waiting: bool, size: int) -> None:
        """Give every row at least one token.

        Args:
            waiting: Whether there are prompts to take the place of rows that end.
            size: Rows that may be in flight.
        """
        if self.state is None:
            return
        most = max(row.room for row in self.rows) - 1 if self.may_draft else 0
        k = self.speculation.length(len(self.rows), most, waiting or bool(self.waiting))
        pending = [row.pending for row in self.rows]
        one = Round(self.fuser, self.state, pending, self.drafter, k)
        with blame(lambda place: self.rows[place].index):
            gains = one.play()
        first: list[tuple[int, Row]] = []
        more: list[tuple[int, Row]] = []
        kept = []
        counts: dict[int, int] = {}
        for place, (row, mine) in enumerate(zip(self.rows, gains, strict=True)):
            for gain in mine:
                way, drawn = self._take(row, gain)
                kept.append(gain.up_to(drawn))
                if way.writers:
                    counts[id(way)] = gain.accepted + 1
                    (more if first and first[-1][0] == place else first).append((place, way))
        staying = self._with_room([*first, *more], len(self.rows) + self.room(size))
        cost = one.cost()
        begun = time.perf_counter()  # small work that a host waits for, on a GPU too
        self._keep(one.start, {id(row): counts[id(row)] for _, row in staying}, staying)
        settling = time.perf_counter() - begun if k else 0.0
        self.speculation.learn(k, len(gains), kept, cost._replace(judging=cost.judging + settling))

    def _keep(self, start: int, counts: dict[int, int], staying: Sequence[tuple[int, Row]]) -> None:
        """Go on with some rows.

        Args:
            start: The first slot of this round.
            counts: By identity of the row, how many slots from there on are kept.
            staying: The rows, with their places in the batch.
        """
        if not staying or self.state is None:
            self.rows, self.state = [], None
            return
        places = [place for place, _ in staying]
        if len(set(places)) == len(places):
            by_place = dict(staying)
            if len(places) < len(self.rows):
                places = self.state.shrink(places)
            self.rows = [by_place[place] for place in places]
            self._cut(start, [counts[id(row)] for row in self.rows])
            return
        # Rows that have a beginning in common lie side by side.
        ordered = sorted(staying, key=lambda way: way[1].index)
        self.rows = [row for _, row in ordered]
        self.state = self.state.fork(
            [place for place, _ in ordered],
            [row.cached for row in self.rows],
            start,
            [counts[id(row)] for row in self.rows],
        )

    def _cut(self, start: int, counts: Sequence[int]) -> None:
        """Of the slots from ``start`` on, keep so many of each row; pack holes where that pays."""
        assert self.state is not None
        table, cached = self.state.table, [row.cached for row in self.rows]
        if min(counts) < table.slots - start:
            table.keep(start, torch.tensor(counts).to(table.ids.device, non_blocking=True))
            self.state.crop(start + max(counts))
        everyone = range(len(self.rows))
        needed = self.state.width(everyone, cached)
        if self.state.table.slots - self.state.table.shared > needed * _WASTE + _SOME:
            self.state = self.state.fork(everyone, cached)
