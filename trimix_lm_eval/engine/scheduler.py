"""Prompts of token ids in, generated token ids out, for all fusion configs at once. No text.

Invariant 2: which token comes is a function of the fused distribution and of the sequence's own
noise (see `sampler`). Drafts (see `spec_decode`) only guess its value, so the text depends neither
on them nor on the batch, the order, the other configs or the prompts that are scheduled on the way.

A sequence that is finished (see `sequence`) leaves the batch at once, and the next prompt takes its
place. What several configs write after one prompt is one sequence as long as they agree on every
token, and is run once. Where they differ the sequence forks; all forks have the prompt's cache in
common, so that more of them fit into the memory that as many prompts would take. Forks that find no
room are preempted, and go on from the prompt when there is room.

Longer than most modules: starts, forks and preemptions change one state, and keep it consistent.
"""

from __future__ import annotations

import collections.abc as abc
import time

import torch

from trimix_lm_eval.engine.graph_decoder import GraphDecoder, can_capture
from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.memory import halve_batch_size, release_memory
from trimix_lm_eval.engine.model_runner import Fuser, LogitView, blame, mean_choice
from trimix_lm_eval.engine.prefill import (
    PrefixNode,
    PrefixTree,
    choices_of,
    collectors_for,
    padded,
    prefill,
)
from trimix_lm_eval.engine.sampler import sample
from trimix_lm_eval.engine.sequence import (
    Branch,
    CompletionOutput,
    ForkPoint,
    GenerationRequest,
    NewTokens,
    Sequence,
    grouped,
)
from trimix_lm_eval.engine.spec_decode import (
    CAPTURED_LENGTHS,
    LENGTHS,
    DecodingStep,
    Speculation,
)
from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.fusion.config import ResolvedFusion
from trimix_lm_eval.utils.errors import is_out_of_memory

#: Who drafts.
DRAFTER = "small_cpt"
#: Caches with more slots than this times what is needed, and some, are packed.
_MAX_WASTE, _SLACK_SLOTS = 1.125, 32
#: Sequences in the batch per sequence that was asked for, at most, where prompts are in common.
MAX_FORKS = 8

#: (index of the request, index of the fusion config, text)
Found = tuple[int, int, CompletionOutput]
#: Told what a sequence gains, in a run of one fusion: the index of its request, how many tokens it
#: had before (0 where it was started anew for want of memory), and the new ones.
Observer = abc.Callable[[int, int, NewTokens], None]


def generate(
    fuser: Fuser,
    requests: abc.Sequence[GenerationRequest],
    batch_size: int,
    speculation: Speculation | None = None,
    observer: Observer | None = None,
) -> abc.Iterator[Found]:
    """Continue prompts.

    Args:
        fuser: The sources and the fusion configs.
        requests: What to continue.
        batch_size: Sequences that run at the same time.
        speculation: Decides how much is drafted, and keeps the statistics; None drafts nothing.
        observer: Watches the sequences grow, drafts and all; None if nobody does.

    Yields:
        (index of the request, index of the fusion config, text), each as soon as it is finished.

    Raises:
        TrimixError: Memory runs out with a single sequence.
    """
    queue = _WaitingQueue(PrefixTree(fuser, [request.prompt for request in requests]).walk())
    scheduler = Scheduler(fuser, requests, queue, speculation or Speculation("off"), observer)
    more = True
    while more:
        size = min(batch_size, fuser.ensemble.most_rows)
        out_of_memory = False
        try:
            scheduler.schedule(size)
            more = bool(scheduler.running)
            scheduler.step(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if scheduler.num_rows > size and scheduler.max_forks > 1:
                scheduler.max_forks //= 2
            else:  # there may be more rows than the next batch is to have
                rows = max(1, min(size, scheduler.num_rows))
                halve_batch_size(fuser.ensemble, rows, error, queue.evict)
            out_of_memory = True
        yield from scheduler.pop_finished()
        if out_of_memory:
            # Only now: the traceback held the tensors of the failed step alive.
            scheduler.preempt()
            release_memory()


class _WaitingQueue:
    """Prompts in the order in which they share their prefixes."""

    def __init__(self, groups: abc.Iterator[tuple[PrefixNode, list[int]]]) -> None:
        self.groups = groups
        self.node, self.left = PrefixNode(), list[int]()
        self.again: list[int] = []

    def take(self, most: int) -> tuple[PrefixNode, list[int]] | None:
        """At most so many that share a prefix; None if there are no more."""
        if self.again:  # whatever they shared is gone
            taken, self.again = self.again[:most], self.again[most:]
            return PrefixNode(), taken
        if not self.left:
            self.node = PrefixNode()  # frees its cache before the next is made
            self.node, self.left = next(self.groups, (PrefixNode(), []))
        taken, self.left = self.left[:most], self.left[most:]
        return (self.node, taken) if taken else None

    def __bool__(self) -> bool:
        """Whether prompts are left, as far as is known: those of one prefix are known together."""
        return bool(self.again or self.left)

    def evict(self) -> bool:
        """Free what prompts begin with; returns whether there was any."""
        return self.node.evict()


class Scheduler:
    """Decides which sequences run, and lets them.

    Args:
        fuser: The sources and the fusion configs.
        requests: What is to be continued.
        waiting: Their indices, by prefix.
        speculation: Decides how much is drafted.
        observer: Watches the sequences grow.
    """

    def __init__(
        self,
        fuser: Fuser,
        requests: abc.Sequence[GenerationRequest],
        waiting: _WaitingQueue,
        speculation: Speculation,
        observer: Observer | None,
    ) -> None:
        self.fuser, self.requests, self.waiting = fuser, requests, waiting
        self.speculation, self.observer = speculation, observer
        names = fuser.ensemble.names
        self.may_draft = DRAFTER in names and len(names) > 1  # one alone would draft for itself
        self.drafter = names.index(DRAFTER) if self.may_draft else 0
        may_fork = len(fuser.configs) > 1 and fuser.ensemble.shares_prefixes
        self.max_forks = MAX_FORKS if may_fork else 1
        #: Tokens of the longest prompt with its text, and of the longest text.
        self.longest = max((len(r.prompt.ids) + r.max_new_tokens for r in requests), default=0)
        self.longest_text = max((request.max_new_tokens for request in requests), default=1)
        self.running: list[Sequence] = []
        self.batch: InputBatch | None = None
        #: Forks that found no room, to be resumed.
        self.preempted: list[Sequence] = []
        self.starting: list[int] = []
        self.resuming = 0
        #: By request, the configs whose texts are finished: it may have to be started again.
        self.finished: dict[int, set[int]] = {}
        self.outputs: list[Found] = []
        self.decoder = self._decoder()

    def _decoder(self) -> GraphDecoder | None:
        """What decodes by captured rounds; None where steps are run operation by operation."""
        on_gpu = self.fuser.ensemble.device.type == "cuda"
        return (
            GraphDecoder(self.fuser, self.drafter) if on_gpu and can_capture(self.fuser) else None
        )

    @property
    def num_rows(self) -> int:
        """Rows of the batch, or about to be."""
        return len(self.running) + len(self.starting) + self.resuming

    def pop_finished(self) -> list[Found]:
        """What has finished since this was asked last."""
        outputs, self.outputs = self.outputs, []
        return outputs

    def preempt(self) -> None:
        """Give up all texts that are not finished; their requests wait to be started anew."""
        indices = [*self.starting, *(one.index for one in [*self.running, *self.preempted])]
        self.running, self.preempted, self.batch = [], [], None
        self.starting, self.resuming, self.decoder = [], 0, self._decoder()
        left = [i for i in indices if len(self.finished.get(i, ())) < len(self.fuser.configs)]
        self.waiting.again += dict.fromkeys(left)

    # ---------------------------------------------------------------- sequences come and go

    def room(self, size: int, new: abc.Sequence[Sequence] = ()) -> int:
        """Rows that may still come, besides those of ``new`` prompts.

        As many tokens may be held as ``size`` sequences with the longest prompt and text would be.
        """
        more = size - len(self.running)
        if self.max_forks == 1:
            return more
        everyone = [*self.running, *self.preempted, *new]
        held = {one.index: len(one.request.prompt.ids) for one in everyone}
        own = sum(one.request.max_new_tokens for one in self.running)
        left = size * self.longest - sum(held.values()) - own
        return min(max(left // self.longest_text, more), self.max_forks * size - len(self.running))

    def schedule(self, size: int) -> None:
        """Start prompts, or resume preempted texts, where ``size`` sequences leave room for them.

        Not for each single row: to let one in copies the caches of all.
        """
        if self.running and self.room(size) < max(1, max(size, len(self.running)) // 4):
            return
        while self.preempted and (room := self.room(size)) > 0:
            self._resume(room)
        # Where sequences fork, a few prompts make many rows within a few tokens.
        most = left = max(1, size // 4) if self.max_forks > 1 else size
        while (left > 0 or not self.running) and len(self.running) < size and not self.preempted:
            if left <= 0:  # all of them ended with their first token
                left = most
            group = self.waiting.take(min(left, size - len(self.running)))
            if group is None:
                return
            node, self.starting = group
            left -= len(self.starting)
            self._start(node, self.starting, size)
            self.starting = []

    def _start(self, node: PrefixNode, indices: abc.Sequence[int], size: int) -> None:
        """Run prompts, choose their weights, and sample their first tokens."""
        fuser = self.fuser
        prompts = [self.requests[i].prompt for i in indices]
        collectors = collectors_for(fuser, prompts)
        with blame(indices.__getitem__):
            begun = node.start(prompts, collectors)
            rest = [node.rest(prompt) for prompt in prompts]
            batch, hidden = prefill(fuser.ensemble, rest, collectors, begun)
            sequences = [
                Sequence(i, self.requests[i], self._branches(i, choices_of(fuser, prompt, mine)))
                for i, prompt, mine in zip(indices, prompts, collectors, strict=True)
            ]
            view = LogitView(fuser.ensemble, hidden)
            fusions = [one.fusions for one in sequences]
            output = sample(fuser, view, fusions, [[one.draw()] for one in sequences])
            view.check(output.finite)
        if any(len(one.branches) > 1 for one in sequences):
            batch = batch.fork_shared(range(len(sequences)))  # however often it forks, once each
        forks: list[tuple[int, Sequence]] = []
        for row, (sequence, sampled) in enumerate(zip(sequences, output.sampled, strict=True)):
            if len(sequence.branches) > 1:
                sequence.fork_point = ForkPoint(batch, row)
            for tokens, branches in grouped([one.token_ids for one in sampled]):
                weights = [sampled[branch].weights for branch in branches]
                new = NewTokens(tokens, weights, 0, 0, None, tuple(branches))
                fork, _ = self._append(sequence, new)
                forks += [(row, fork)] if fork.branches else []
        staying = self._with_room(forks, self.room(size, sequences))
        if staying:
            rows, stay = [row for row, _ in staying], [one for _, one in staying]
            self._join(batch.fork(rows, [one.num_cached for one in stay]), stay)

    def _branches(self, index: int, choices: abc.Sequence[Choice | None]) -> list[Branch]:
        """The branches of a request: one for all configs that cannot differ."""
        branches: dict[tuple[ResolvedFusion, frozenset[int]], Branch] = {}
        for i, choice in enumerate(choices):
            if i not in self.finished.get(index, ()):
                vector = tuple(self.fuser.vector(choice))
                fusion = ResolvedFusion(vector, self.fuser.decoding[i])
                stops = self.requests[index].stop_token_ids[i]
                zero = torch.zeros(len(vector), dtype=torch.float64)
                branch = branches.setdefault((fusion, stops), Branch(fusion, stops, {}, zero))
                branch.choices[i] = choice
        return list(branches.values())

    def _with_room(
        self, forks: abc.Sequence[tuple[int, Sequence]], room: int
    ) -> list[tuple[int, Sequence]]:
        """As many as there is room for; the others are preempted, if they can be resumed."""
        staying: list[tuple[int, Sequence]] = []
        for row, one in forks:
            if len(one.branches) == 1 and len(staying) < room:
                one.fork_point = None  # it will not fork, nor have to wait
            if len(staying) < room or one.fork_point is None:
                staying.append((row, one))
            else:
                self.preempted.append(one)
        return staying

    def _resume(self, room: int) -> None:
        """Resume preempted texts: their tokens so far run after their prompts at once."""
        some = self.preempted[:room]
        first = some[0].fork_point
        assert first is not None
        some = [s for s in some if s.fork_point is not None and s.fork_point.batch is first.batch]
        rows = [one.fork_point.row for one in some if one.fork_point is not None]
        self.resuming = len(some)
        batch = first.batch.fork(rows)
        ids, valid = padded([one.token_ids[:-1] for one in some])
        for _ in batch.feed(ids, valid, torch.zeros_like(valid)):
            pass
        self.preempted = [one for one in self.preempted if one not in some]
        self.resuming = 0
        for one in some:
            if len(one.branches) == 1:
                one.fork_point = None
        self._join(batch, some)

    def _join(self, new: InputBatch, sequences: abc.Sequence[Sequence]) -> None:
        """Let more sequences join those that run."""
        if self.decoder is not None:
            self.decoder.admit(new, sequences)
        elif self.batch is not None:
            cached = [one.num_cached for one in self.running]
            new = self.batch.fork(range(len(self.running)), cached).concat(new)
        self.running, self.batch = (
            [*self.running, *sequences],
            new if self.decoder is None else None,
        )

    def _append(self, sequence: Sequence, new: NewTokens) -> tuple[Sequence, int]:
        """Give some branches of a sequence their new tokens.

        Returns:
            The sequence as they go on, without branches if none does, and the tokens drawn.
        """
        if self.observer is not None:
            self.observer(sequence.index, len(sequence.token_ids), new)
        fork = sequence.fork(new.branches)
        finished, drawn = fork.append(new)
        for branch, ids, reason in finished:
            for config, choice in branch.choices.items():
                used = choice or mean_choice(self.fuser, config, (branch.used / branch.drawn)[None])
                self.finished.setdefault(sequence.index, set()).add(config)
                output = CompletionOutput(ids, used, reason, branch.answer)
                self.outputs.append((sequence.index, config, output))
        return fork, drawn

    # ---------------------------------------------------------------- a step

    def step(self, size: int) -> None:
        """Give every sequence that runs at least one token; ``size`` as of `schedule`."""
        if not self.running:
            return
        most = max(one.remaining_tokens for one in self.running) - 1 if self.may_draft else 0
        if self.decoder is not None:
            most = min(most, self.decoder.most_drafts())
        others_wait = bool(self.waiting or self.preempted)
        lengths = LENGTHS if self.decoder is None else CAPTURED_LENGTHS
        k = self.speculation.draft_length(len(self.running), most, others_wait, lengths)
        if self.decoder is not None:
            done = self.decoder.step(k, self._append)
            if done is not None:
                room = len(self.running) + self.room(size)
                self.running = self.decoder.keep(self._with_room(done.going, room))
                if done.rows:
                    self.speculation.learn(done.k, done.rows, done.kept, done.cost)
            return
        assert self.batch is not None
        one_step = DecodingStep(self.fuser, self.batch, self.running, self.drafter, k)
        with blame(lambda row: self.running[row].index):
            gained = one_step.run()
        first, others = list[tuple[int, Sequence]](), list[tuple[int, Sequence]]()
        kept, counts = [], dict[int, int]()
        for row, (sequence, mine) in enumerate(zip(self.running, gained, strict=True)):
            for new in mine:
                fork, drawn = self._append(sequence, new)
                kept.append(new.up_to(drawn))
                if fork.branches:
                    counts[id(fork)] = new.num_accepted_tokens + 1
                    (others if first and first[-1][0] == row else first).append((row, fork))
        staying = self._with_room([*first, *others], len(self.running) + self.room(size))
        cost = one_step.cost()
        begun = time.perf_counter()  # small work that a host waits for, on a GPU too
        self._keep(one_step.start, {id(one): counts[id(one)] for _, one in staying}, staying)
        settling = time.perf_counter() - begun if k else 0.0
        cost = cost._replace(verifying=cost.verifying + settling)
        self.speculation.learn(k, len(gained), kept, cost)

    def _keep(
        self, start: int, counts: dict[int, int], staying: abc.Sequence[tuple[int, Sequence]]
    ) -> None:
        """Go on with some sequences, given with their rows in the batch.

        ``counts`` tells by identity of a sequence how many slots from ``start`` on are kept.
        """
        if not staying or self.batch is None:
            self.running, self.batch = [], None
            return
        rows = [row for row, _ in staying]
        if len(set(rows)) == len(rows):
            by_row = dict(staying)
            if len(rows) < len(self.running):
                rows = self.batch.shrink(rows)
            self.running = [by_row[row] for row in rows]
            self._cut(start, [counts[id(one)] for one in self.running])
            return
        # Sequences that have a prompt in common lie side by side.
        ordered = sorted(staying, key=lambda pair: pair[1].index)
        self.running = [one for _, one in ordered]
        cached = [one.num_cached for one in self.running]
        kept = [counts[id(one)] for one in self.running]
        self.batch = self.batch.fork([row for row, _ in ordered], cached, start, kept)

    def _cut(self, start: int, counts: abc.Sequence[int]) -> None:
        """Of the slots from ``start`` on, keep so many of each row; pack holes where that pays."""
        assert self.batch is not None
        table, cached = self.batch.table, [one.num_cached for one in self.running]
        if min(counts) < table.slots - start:
            table.keep(start, torch.tensor(counts))
            self.batch.crop(start + max(counts))
        everyone = range(len(self.running))
        needed = self.batch.width(everyone, cached)
        if self.batch.table.slots - self.batch.table.shared > needed * _MAX_WASTE + _SLACK_SLOTS:
            self.batch = self.batch.fork(everyone, cached)
