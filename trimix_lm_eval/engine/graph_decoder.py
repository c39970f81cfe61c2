"""Decoding by captured rounds: which sequence runs in which row, and what the host does meanwhile.

The host begins round r + 1 before it looks at what round r gave: while the GPU works it turns
tokens into text, looks for stop strings, and lets sequences in. A sequence that ended in round r
has then run one round too many, whose tokens are dropped.

The number of rows is a power of two, the number of slots a multiple of 128, so that a run needs few
graphs; caches are made anew, and rows copied, only when sequences no longer fit. A prefix that rows
share is held once.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Sequences
from typing import Any

import torch
from torch import Tensor

from trimix_lm_eval.engine.graph_round import Round, RoundKind, RowState, Verdict
from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.kv_cache import Prefix
from trimix_lm_eval.engine.model_runner import Fuser, always, blame
from trimix_lm_eval.engine.noise import seed_words
from trimix_lm_eval.engine.not_finite import explain_not_finite
from trimix_lm_eval.engine.sequence import NewTokens, Sequence
from trimix_lm_eval.engine.spec_decode import Cost
from trimix_lm_eval.engine.static_cache import StaticCache, StaticShape
from trimix_lm_eval.fusion.logits import to_device

#: Slots of a row are a multiple of this.
_SLOTS = 128
#: Drafts of a round at most.
MOST_DRAFTS = 8
#: Kinds of rounds that are held captured, two graphs each.
_MOST_KINDS = 12


def why_eager(fuser: Fuser) -> str | None:
    """Why rounds may not be captured; None if they may: all sources on one GPU, one fusion config.

    `StaticLayer.attend` caps no scores.
    """
    ensemble, sources = fuser.ensemble, fuser.ensemble.sources
    # Of all weights: one model may be spread over several.
    devices = {str(weight.device) for source in sources for weight in source.model.parameters()}
    plain = [s.name for s in sources if s.plain]
    capped = [s.name for s in sources if getattr(s.config, "attn_logit_softcapping", None)]
    reasons = {
        "cuda_graphs=off": not ensemble.cuda_graphs,
        "not on a GPU": ensemble.device.type != "cuda",
        f"weights lie on several devices: {', '.join(sorted(devices))}": len(devices) > 1,
        "several fusions in one run": len(fuser.configs) > 1,
        f"run without a cache: {', '.join(plain)}": bool(plain),
        f"attention scores are capped: {', '.join(capped)}": bool(capped),
    }
    return next((why for why, holds in reasons.items() if holds), None)


def can_capture(fuser: Fuser) -> bool:
    """Whether rounds may be captured."""
    return why_eager(fuser) is None


def told(fuser: Fuser) -> dict[str, Any]:
    """What results record: graphs captured so far, and why none, or not of every kind of round."""
    graphs, why = fuser.ensemble.graphs_captured, fuser.ensemble.not_captured
    if why is None and not graphs:
        why = why_eager(fuser) or "no kind of decoding step was needed often enough"
    return {"captured": graphs, "reason": why}


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
        self.shape = StaticShape(0, 0, 0)
        #: Where shared prefixes lie: the first slot, the prefix in the cache of the first source.
        self.prefixes: dict[int, Prefix] = {}
        self.prefix_of: dict[int, int] = {}  # the first slot of the prefix of a row
        self.state: RowState | None = None
        self.caches: list[StaticCache] = []
        self.rounds: dict[RoundKind, Round] = {}
        self.running: _Running | None = None
        self._pool = torch.cuda.graph_pool_handle()

    # ---------------------------------------------------------------- sequences come and go

    def admit(self, batch: InputBatch, sequences: Sequences[Sequence]) -> None:
        """Let sequences in that have run in a batch, a row each; their slots there are packed."""
        shared = batch.caches[0].shared
        new = [] if shared is None else shared.prefixes
        self._forget_prefixes()
        everyone = [(one, self._length_of(row)) for row, one in self.rows.items()]
        everyone += zip(sequences, batch.prefix_lengths, strict=True)
        needed = max(_slots(one) - length for one, length in everyone)
        starts, fresh = self._place(new)
        end = max((start + _length(p) for start, p in self.prefixes.items()), default=0)
        self._make_room(batch, len(everyone), needed, end)
        free = [row for row in range(self.shape.rows) if row not in self.rows]
        rows = free[: len(sequences)]
        for cache, theirs in zip(self.caches, batch.caches, strict=True):
            cache.take_rows(theirs, rows)
            for i in fresh:
                cache.take_prefix(theirs.shared.prefixes[i], starts[i])
        of = [None] * len(rows) if shared is None else shared.prefix_of
        for row, prefix in zip(rows, of, strict=True):
            self.prefix_of.pop(row, None)
            if prefix is not None:
                self.prefix_of[row] = starts[prefix]
        self._write(rows, sequences)
        self.rows.update(zip(rows, sequences, strict=True))

    def _length_of(self, row: int) -> int:
        """Tokens of a row's shared prefix."""
        return _length(self.prefixes[self.prefix_of[row]]) if row in self.prefix_of else 0

    def _forget_prefixes(self) -> None:
        """Let go of the prefixes that no row has any more."""
        used = {start for row, start in self.prefix_of.items() if row in self.rows}
        self.prefixes = {start: p for start, p in self.prefixes.items() if start in used}

    def _place(self, prefixes: Sequences[Prefix]) -> tuple[list[int], list[int]]:
        """The first slot of each prefix, and which of them are not there yet."""
        starts, fresh = [], []
        for i, prefix in enumerate(prefixes):
            found = [start for start, one in self.prefixes.items() if one is prefix]
            if not found:
                found = [self._gap(_length(prefix))]
                self.prefixes[found[0]] = prefix
                fresh.append(i)
            starts.append(found[0])
        return starts, fresh

    def _gap(self, length: int) -> int:
        """The first of so many free slots among the shared ones."""
        at = 0
        for start in sorted(self.prefixes):
            if start - at >= length:
                break
            at = start + _length(self.prefixes[start])
        return at

    def _make_room(self, batch: InputBatch, rows: int, slots: int, shared: int) -> None:
        """Larger caches if these do not suffice; the rows that run move there.

        They keep their numbers, by which the round that may be running tells what it gives.
        """
        before, had = self.shape, self.caches
        if rows <= before.rows and slots <= before.slots and shared <= before.shared:
            return
        self.shape = StaticShape(
            max(before.rows, 1 << (rows - 1).bit_length()),
            max(before.slots, _rounded(slots)),
            max(before.shared, _rounded(shared)),
        )
        state, kept = self.state, list(self.rows)
        self.rounds.clear()
        self.state = RowState.empty(self.shape.rows, self.fuser)
        self.caches = [StaticCache(cache, self.shape) for cache in batch.caches]
        if state is None:
            return
        for mine, theirs in zip(self.caches, had, strict=True):
            mine.take_all(theirs, kept)
        for new, old in zip(self.state.tensors(), state.tensors(), strict=True):
            new[: before.rows] = old

    def _write(self, rows: Sequences[int], sequences: Sequences[Sequence]) -> None:
        """Tell the device where new rows stand."""
        assert self.state is not None
        device, vocab = self.state.last.device, self.fuser.ensemble.vocab_size
        params = [one.request.params for one in sequences]
        columns: list[Tensor] = [
            torch.tensor([one.token_ids[-1] for one in sequences]),
            torch.tensor([one.num_cached for one in sequences]),
            torch.tensor([len(one.token_ids) for one in sequences]),
            torch.tensor([self.prefix_of.get(row, 0) for row in rows]),
            torch.tensor([self._length_of(row) for row in rows]),
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

    def step(
        self, k: int, append: Callable[[Sequence, NewTokens], tuple[Sequence, int]]
    ) -> tuple[int, int, list[NewTokens], Cost] | None:
        """Begin a round with k drafts, and take account of the one before while the GPU works.

        Args:
            k: Drafts of each row.
            append: Gives a sequence its new tokens; returns it as it goes on, without branches if
                it does not, and how many of the tokens were of use.

        Returns:
            Of the round before, what `Speculation.learn` takes; None if there was none.
        """
        begun = self.begin(min(k, MOST_DRAFTS))
        if begun is None:
            return None
        gained, cost = self.finish(begun)
        kept = []
        for row, sequence, new in gained:
            one, drawn = append(sequence, new)
            kept.append(new.up_to(drawn))
            if one.branches:
                self.rows[row] = one
            else:
                del self.rows[row]
        return (begun.work.kind.k, len(kept), kept, cost) if kept else None

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
                self.shape,
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


def _slots(one: Sequence) -> int:
    """Slots for a sequence: all its tokens, and two rounds that may run beyond its end."""
    return len(one.request.prompt.ids) + one.request.max_new_tokens + 2 * (MOST_DRAFTS + 1)


def _length(prefix: Prefix) -> int:
    """Tokens of a shared prefix."""
    return prefix[0][0].shape[1]


def _rounded(slots: int) -> int:
    return -(-slots // _SLOTS) * _SLOTS


def _gained(verdict: Verdict, row: int, k: int, one: Sequence) -> NewTokens:
    """What a round gives a row."""
    limit = min(k, one.remaining_tokens - 1)
    accepted = min(int(verdict.accepted[row]), limit)
    tokens = verdict.tokens[row, : accepted + 1].tolist()
    rejected = int(verdict.drafts[row, accepted]) if accepted < limit else None
    weights: list[Any] = [verdict.weights[row, : accepted + 1]]
    return NewTokens(tokens, weights, max(limit, 0), accepted, rejected)
