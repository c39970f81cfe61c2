"""Decoding by captured rounds: which sequence runs in which row, and what the host does meanwhile.

The host begins round r + 1 before it looks at what round r gave: while the GPU works it turns
tokens into text, looks for stop strings, and lets sequences in. A sequence that ended in round r
has then run one round too many, whose tokens are dropped.

The number of rows and the number of slots of each are powers of two and multiples of 128, so that a
run needs few graphs; caches are made anew, and rows copied, only when sequences no longer fit.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequences
from typing import Any

import torch
from torch import Tensor

from trimix_lm_eval.engine.graph_round import Round, RoundKind, RowState, Verdict
from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.model_runner import Fuser, always, blame
from trimix_lm_eval.engine.noise import seed_words
from trimix_lm_eval.engine.prefill import explain_not_finite
from trimix_lm_eval.engine.sequence import NewTokens, Sequence
from trimix_lm_eval.engine.spec_decode import Cost
from trimix_lm_eval.engine.static_cache import StaticCache
from trimix_lm_eval.fusion.logits import to_device

#: Slots of a row are a multiple of this.
_SLOTS = 128
#: Drafts of a round at most.
MOST_DRAFTS = 8
#: Kinds of rounds that are held captured, two graphs each.
_MOST_KINDS = 12


def can_capture(fuser: Fuser) -> bool:
    """Whether rounds of these sources can be captured: all on one GPU, one fusion config."""
    sources = fuser.ensemble.sources
    devices = {source.device for source in sources}
    one_gpu = len(devices) == 1 and fuser.ensemble.device.type == "cuda"
    return one_gpu and len(fuser.configs) == 1 and not any(source.plain for source in sources)


class _Running:
    """A round that was begun."""

    def __init__(self, work: Round, rows: dict[int, Sequence]) -> None:
        self.work, self.rows = work, rows
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        self.on_host = work.begin(self.events)


class GraphDecoder:
    """The rows of a run on the GPU.

    Args:
        fuser: The sources, on one GPU, and one fusion config.
        drafter: Index of the source that drafts.
    """

    def __init__(self, fuser: Fuser, drafter: int) -> None:
        self.fuser, self.drafter = fuser, drafter
        self.rows: dict[int, Sequence] = {}
        self.slots = self.capacity = 0
        self.state: RowState | None = None
        self.caches: list[StaticCache] = []
        self.rounds: dict[RoundKind, Round] = {}
        self.running: _Running | None = None
        self._pool = torch.cuda.graph_pool_handle()

    # ---------------------------------------------------------------- sequences come and go

    def admit(self, batch: InputBatch, sequences: Sequences[Sequence]) -> None:
        """Let sequences in that have run in a batch, a row each; their slots there are packed."""
        needed = max(self._needed(one) for one in [*self.rows.values(), *sequences])
        self._make_room(batch, len(self.rows) + len(sequences), needed)
        free = [row for row in range(self.capacity) if row not in self.rows]
        rows = free[: len(sequences)]
        for cache, theirs in zip(self.caches, batch.caches, strict=True):
            cache.take(theirs, rows, batch.prefix_lengths)
        self._write(rows, sequences)
        self.rows.update(zip(rows, sequences, strict=True))

    def replace(self, row: int, sequence: Sequence | None) -> None:
        """The sequence of a row as it goes on; None lets it go."""
        if sequence is None:
            del self.rows[row]
        else:
            self.rows[row] = sequence

    def _needed(self, one: Sequence) -> int:
        """Slots for a sequence: all its tokens, and two rounds that may run beyond its end."""
        return len(one.request.prompt.ids) + one.request.max_new_tokens + 2 * (MOST_DRAFTS + 1)

    def _make_room(self, batch: InputBatch, rows: int, slots: int) -> None:
        """Larger caches if rows or slots are too few; those that run move there."""
        if rows <= self.capacity and slots <= self.slots:
            return
        self.capacity = max(self.capacity, 1 << (rows - 1).bit_length())
        self.slots = max(self.slots, -(-slots // _SLOTS) * _SLOTS)
        before, state, kept = self.caches, self.state, list(self.rows)
        self.rounds.clear()
        self.state = RowState.empty(self.capacity, self.fuser)
        self.caches = [StaticCache(c, self.capacity, self.slots) for c in batch.caches]
        if kept and state is not None:
            for mine, theirs in zip(self.caches, before, strict=True):
                mine.move(theirs, kept)
            at = to_device(torch.tensor(kept), self.state.last.device)
            for new, old in zip(self.state.tensors(), state.tensors(), strict=True):
                new[: len(kept)] = old[at]
            self.rows = {i: self.rows[row] for i, row in enumerate(kept)}

    def _write(self, rows: Sequences[int], sequences: Sequences[Sequence]) -> None:
        """Tell the device where new rows stand."""
        assert self.state is not None
        device, vocab = self.state.last.device, self.fuser.ensemble.vocab_size
        params = [one.request.params for one in sequences]
        columns: list[Tensor] = [
            torch.tensor([one.token_ids[-1] for one in sequences]),
            torch.tensor([one.num_cached for one in sequences]),
            torch.tensor([len(one.token_ids) for one in sequences]),
            torch.tensor([one.fusions[0].vector for one in sequences]),
            torch.tensor([seed_words(how.seed) for how in params], dtype=torch.int32),
            torch.tensor([how.temperature for how in params]),
            torch.tensor([how.top_k or vocab for how in params]).clamp_max(vocab),
            torch.tensor([how.top_p for how in params], dtype=torch.float64),
        ]
        at = to_device(torch.tensor(rows), device)
        for held, column in zip(self.state.tensors(), columns, strict=True):
            held[at] = to_device(column, device).to(held.dtype)

    # ---------------------------------------------------------------- rounds

    def begin(self, k: int) -> _Running | None:
        """Begin a round with k drafts; returns the one that was begun before, if there is one."""
        before, self.running = self.running, None
        if self.rows:
            params = [one.request.params for one in self.rows.values()]
            drawn = [how for how in params if how.temperature > 0]
            cut = any(how.top_k or how.top_p < 1 for how in drawn)
            kind = RoundKind(k, bool(drawn), cut)
            self.running = _Running(self._round(kind), dict(self.rows))
        return before

    def _round(self, kind: RoundKind) -> Round:
        """The round of a kind; of too many, the one that was needed least lately goes."""
        found = self.rounds.pop(kind, None)
        if found is None:
            assert self.state is not None
            if len(self.rounds) >= _MOST_KINDS:
                del self.rounds[next(iter(self.rounds))]
            found = Round(
                self.fuser,
                self.drafter,
                self.fuser.processors[0],
                self.state,
                self.caches,
                self.slots,
                kind,
                self._pool,
            )
        self.rounds[kind] = found  # the last is the latest
        return found

    def finish(self, begun: _Running) -> tuple[list[tuple[int, Sequence, NewTokens]], Cost]:
        """Wait for a round.

        Returns:
            (row, sequence, what it gains) of the rows that are still those of their sequences, and
            what the round took.

        Raises:
            NotFinite: A source's logits are not numbers.
        """
        start, drafted, verified = begun.events
        verified.synchronize()
        verdict, k = begun.work.verdict(begun.on_host), begun.work.kind.k
        gained = [
            (row, self.rows[row], _gained(verdict, row, k, self.rows[row]))
            for row, one in begun.rows.items()
            if row in self.rows and self.rows[row].index == one.index
        ]
        for row, one, new in gained:
            if not bool(verdict.finite[row, : len(new.token_ids)].all()):
                with blame(always(one.index)):
                    ids = (*one.request.prompt.ids, *one.token_ids, *new.token_ids)
                    explain_not_finite(self.fuser.ensemble, ids)
        cost = Cost(start.elapsed_time(drafted) / 1e3, k + 1, drafted.elapsed_time(verified) / 1e3)
        return gained, cost


def _gained(verdict: Verdict, row: int, k: int, one: Sequence) -> NewTokens:
    """What a round gives a row."""
    limit = min(k, one.remaining_tokens - 1)
    accepted = min(int(verdict.accepted[row]), limit)
    tokens = verdict.tokens[row, : accepted + 1].tolist()
    rejected = int(verdict.drafts[row, accepted]) if accepted < limit else None
    weights: list[Any] = [verdict.weights[row, : accepted + 1]]
    return NewTokens(tokens, weights, max(limit, 0), accepted, rejected)
