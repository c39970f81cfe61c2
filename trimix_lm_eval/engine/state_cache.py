"""The cache of a source some of whose layers keep a state instead of keys and values.

The keys of a token that is padding, or a rejected draft, are hidden by the mask. A state (of a
linear attention, a state space model or a short convolution) has seen every token that was run, in
order, and forgets none; it can only be kept as it was before. So such a source runs each row's
tokens without a gap, in slots of its own, and keeps the row's states behind some of its tokens
(`Snapshot`). What was dropped from a row is noticed in the token table when the row is run again:
it goes on from the last snapshot before that, and the tokens behind it are run again, together with
the new ones.

Where rows of a pass end at different tokens, the pass is cut there, and the state of a row is taken
where its own tokens end; behind them it runs padding along, which no other row sees. A tree of
tokens is run as one row for each of its branches, all from the same snapshot.

Results are those of the whole text (invariants 1 and 2) to the model's own rounding: chunked forms
of gated delta rules sum in another order than a longer chunk would.

Longer than most modules: what is kept, what is forgotten and where a pass is cut depend on
each other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from trimix_lm_eval.engine.input_batch import TokenTable, concat_tables
from trimix_lm_eval.engine.kv_cache import KVCache
from trimix_lm_eval.engine.request import Tokens
from trimix_lm_eval.engine.state_layers import CacheLayout, States
from trimix_lm_eval.fusion.logits import to_device
from trimix_lm_eval.utils.errors import is_out_of_memory, warn_once

#: Tokens of a row that are run again each time, rather than once more for a state behind them.
MOST_AGAIN = 8
#: Slots that hold no token of their row, beyond a share of those that do, before they are packed.
_SLACK, _WASTE = 64, 1.25
#: Tokens that a pass over what texts have in common must save.
_WORTH = 16
#: What the states of the branches of trees may take in one pass.
_BRANCH_BYTES = 2**30

#: Runs ``[B, n]`` tokens of a table from a slot on with a cache; gives ``[B, n, H]`` hidden states.
#: Of the two caches the model takes the first; the second has its keys and values.
Forward = Callable[[TokenTable, int, DynamicCache, KVCache], Tensor]


class Snapshot(NamedTuple):
    """What a row's states are after some of its tokens.

    Attributes:
        tokens: How many.
        states: Of each layer that has states, all of them, without a batch dimension; None before
            the first token.
    """

    tokens: int
    states: States | None


_EMPTY = Snapshot(0, None)


class StateCache:
    """The tokens that a source has run of each row, and what it remembers of them.

    Args:
        layout: Of the model.
        table: The rows' tokens, in slots as they are in ``kv``.
        shares: Whether rows can share prefixes of keys and values.
        one_by_one: Whether the model goes on from a state by one token at a time only.
        never_one: Whether it goes on by several tokens only.
        kv: Keys and values of the layers that have them; None if nothing was run yet.
        rows: The snapshots of each row, at more and more tokens; None if nothing was run yet.

    Attributes:
        drafting: Whether tokens that are run from now on may be dropped again.
        told_more: As of `KVCache`.
    """

    def __init__(
        self,
        layout: CacheLayout,
        table: TokenTable,
        shares: bool,
        one_by_one: bool,
        never_one: bool,
        kv: KVCache | None = None,
        rows: list[list[Snapshot]] | None = None,
    ) -> None:
        self.layout, self.table, self.kv = layout, table, kv or KVCache()
        self.shares, self.one_by_one, self.never_one = shares, one_by_one, never_one
        self.rows = rows if rows is not None else [[_EMPTY] for _ in table.length]
        self.drafting, self.told_more = False, 0

    @property
    def shared(self) -> Any:
        """The prefixes of keys and values that rows share; None if they share none."""
        return self.kv.shared

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, without the room to grow."""
        return self.kv.nbytes

    @property
    def row_bytes(self) -> int:
        """Bytes of the states of a row."""
        return sum(x.nbytes for layer in self.row_states for x in layer)

    @property
    def row_states(self) -> States:
        """The states of a row."""
        return self.rows[0][-1].states or []

    # ---------------------------------------------------------------- rows come and go

    def crop(self, slots: int) -> None:
        """Nothing: what a row still has is looked up when it is run."""

    def begin_draft(self, lengths: Sequence[int]) -> None:
        """Let tokens that are run from now on be dropped again.

        Args:
            lengths: Of each row, its tokens so far, which stay.
        """
        self._forget(lengths)
        self.rows = [mine[-1:] for mine in self.rows]
        self.drafting = True

    def end_draft(self) -> None:
        """What is run from now on stays."""
        self.drafting = False

    def shrink(self, order: Sequence[int]) -> None:
        """Keep some rows in place, as `KVCache.shrink` does."""
        self.kv.shrink(order)
        self.table = self.table.select(torch.tensor(order, dtype=torch.long))
        self.rows = [self.rows[row] for row in order]

    def select(self, rows: Tensor, slots: Tensor | None = None) -> StateCache:
        """A copy of some rows; ``slots`` are those of other sources."""
        own = self.table.valid[rows, self.table.shared :].sum(dim=1)
        mine = self.table.packed(max(own.tolist(), default=0))[rows]
        table, kv = self.table.select(rows, mine), self.kv.select(rows, mine)
        chosen = [list(self.rows[row]) for row in rows.tolist()]
        return self._with(table, kv, chosen)

    def fork_shared(
        self, rows: Sequence[int], slots: Sequence[Tensor] | None, prefix_of: Sequence[int]
    ) -> StateCache:
        """A cache of new rows that have some of these as shared prefixes; ``slots`` are others'."""
        self._forget([mine[-1].tokens for mine in self.rows])
        if not self.layout.keyed:
            return self.select(torch.tensor([rows[i] for i in prefix_of]))
        chosen = [self.rows[rows[i]][-1:] for i in prefix_of]
        table = self.table.fork_shared(rows, prefix_of)
        kv = self.kv.fork_shared(rows, [self.table.own(row) for row in rows], prefix_of)
        return self._with(table, kv, chosen)

    def concat(self, other: StateCache, slots: int) -> StateCache:
        """These rows and another's below them; ``slots`` are those of other sources."""
        table = concat_tables([self.table, other.table])
        kv = self.kv.concat(other.kv, table.slots - table.shared)
        return self._with(table, kv, [*self.rows, *other.rows])

    def _with(self, table: TokenTable, kv: KVCache, rows: list[list[Snapshot]]) -> StateCache:
        """A cache of the same model."""
        how = self.shares, self.one_by_one, self.never_one
        return StateCache(self.layout, table, *how, kv, rows)

    def _forget(self, tokens: Sequence[int]) -> None:
        """Go back to the last snapshots of rows that have seen no more than so many tokens."""
        self.rows = [
            [one for one in mine if one.tokens <= most] or [_EMPTY]
            for mine, most in zip(self.rows, tokens, strict=True)
        ]
        self.table.forget(torch.tensor([mine[-1].tokens for mine in self.rows]))
        used = self.table.valid.any(dim=0).nonzero()
        end = max(int(used[-1]) + 1 if len(used) else 0, self.table.shared)
        if end < self.table.slots:
            self.table.crop(end)
            self.kv.crop(end - self.table.shared)
        own = self.table.valid[:, self.table.shared :].sum(dim=1)
        needed = max(own.tolist(), default=0)
        if end - self.table.shared > needed * _WASTE + _SLACK:
            everyone = torch.arange(len(self.rows))
            slots = self.table.packed(needed)
            self.table = self.table.select(everyone, slots)
            self.kv = self.kv.select(everyone, slots)

    # ---------------------------------------------------------------- passes

    def run(self, forward: Forward, table: Tokens, start: int, wanted: Tensor | None) -> Tensor:
        """Run the tokens of a batch's table from slot ``start`` on.

        Args:
            forward: Runs the model.
            table: Of the batch.
            start: The first new slot.
            wanted: ``[K]`` flat indices into the ``[B, n]`` new tokens; None is all of them.

        Returns:
            ``[K, H]`` hidden states; those of padding are of no consequence.
        """
        if table.branches is not None and not all(map(_is_chain, table.branches.until)):
            return self._run_branches(forward, table, start, wanted)
        own = [valid.nonzero()[:, 0] for valid in table.valid]
        before = [int((slots < start).sum()) for slots in own]
        self._forget(before)
        # What a row has run before, and gains nothing now, can wait.
        stays = [len(slots) == n for slots, n in zip(own, before, strict=True)]
        paths = [
            _Path(row, slots[: mine[-1].tokens] if done else slots)
            for row, (slots, mine, done) in enumerate(zip(own, self.rows, stays, strict=True))
        ]
        return _gathered([self._feed(forward, table, paths, before)], table, start, wanted)

    def _run_branches(
        self,
        forward: Forward,
        table: Tokens,
        start: int,
        wanted: Tensor | None,
    ) -> Tensor:
        """Run trees: what texts of a row have in common, then each text as a row of a copy."""
        self._forget([mine[0].tokens for mine in self.rows])
        groups: list[list[_Path]] = [[] for _ in self.rows]
        for path in branch_paths(table, start):
            groups[path.row].append(path)
        fed: list[_Fed] = []
        todo = self._parts(list(range(len(groups))), groups)
        while todo:
            part = todo.pop()
            try:
                done, more = part.cache._run_part(forward, table, part)
            except Exception as error:
                fewest = part.cache is self or len(part.rows) == 1
                if fewest or not is_out_of_memory(error):
                    raise
                most = self.layout.most_branches = len(part.rows) // 2
                warn_once(f"Out of memory: going on with {most} options of a prompt at a time.")
                done, more = [], part.cache._parts(part.rows, part.groups)
            fed += done
            todo += more
        return _gathered(fed, table, start, wanted)

    def _run_part(
        self, forward: Forward, table: Tokens, part: _Part
    ) -> tuple[list[_Fed], list[_Part]]:
        """Run what the texts of each group have in common; returns what is left to run."""
        cache = self._fork(part.rows)
        begun = [mine[-1].tokens for mine in cache.rows]
        ends = [_common(paths, n) for paths, n in zip(part.groups, begun, strict=True)]
        trunks = [
            _Path(paths[0].row, paths[0].slots[:end])
            for paths, end in zip(part.groups, ends, strict=True)
        ]
        go_on = [i for i, paths in enumerate(part.groups) if len(paths) > 1]
        fed = []
        if any(end > n for end, n in zip(ends, begun, strict=True)):
            asked = {ends[i] - begun[i] for i in go_on}
            fed.append(cache._feed(forward, table, trunks, None, asked))
        rest = [_divided(part.groups[i], ends[i]) for i in go_on]
        return fed, cache._parts(
            [row for row, mine in zip(go_on, rest, strict=True) for _ in mine],
            [paths for mine in rest for paths in mine],
        )

    def _parts(self, rows: list[int], groups: list[list[_Path]]) -> list[_Part]:
        """Groups of texts that go on from rows, as many at a time as states have room."""
        room = max(len(self.rows), _BRANCH_BYTES // max(self.row_bytes, 1))
        most = min(room, self.layout.most_branches)
        pairs = [pair for pair in zip(rows, groups, strict=True) if pair[1]]
        some = [pairs[at : at + most] for at in range(0, len(pairs), most)]
        return [_Part(self, [row for row, _ in x], [paths for _, paths in x]) for x in some]

    def _fork(self, rows: list[int]) -> StateCache:
        """Copies of some rows, to be thrown away when they have run."""
        if self.shares and self.kv.shared is None:
            distinct = list(dict.fromkeys(rows))
            mine = self.fork_shared(distinct, None, [distinct.index(row) for row in rows])
        else:  # to share what is shared already would copy it, and what is not is short
            mine = self.select(torch.tensor(rows))
        mine.begin_draft([one[-1].tokens for one in mine.rows])
        return mine

    def _feed(
        self,
        forward: Forward,
        table: Tokens,
        paths: Sequence[_Path],
        certain: Sequence[int] | None,
        asked: Collection[int] = (),
    ) -> _Fed:
        """Run what is not run yet.

        Args:
            forward: Runs the model.
            table: Of the batch.
            paths: The tokens of each row of this cache.
            certain: Of each row, how many tokens stay; None if it is of no consequence.
            asked: Behind how many of their new tokens states of rows are asked for besides.
        """
        begun = [mine[-1].tokens for mine in self.rows]
        counts = [len(path.slots) - n for path, n in zip(paths, begun, strict=True)]
        width = max(1, *counts)  # all of it padding, of rows that gain nothing
        valid = torch.arange(width) < torch.tensor(counts)[:, None]
        slots = torch.zeros(len(paths), width, dtype=torch.long)
        for row, (path, tokens) in enumerate(zip(paths, begun, strict=True)):
            slots[row, : counts[row]] = path.slots[tokens:]
        of = torch.tensor([path.row for path in paths])[:, None].expand_as(slots)
        device = table.ids.device
        ids = table.ids[to_device(of, device), to_device(slots, device)]
        pieces, left, states = [], 0, self._stacked()
        cuts = sorted({*self._cuts(counts, begun, certain), *asked} - {0})
        for end in self._ends(cuts, begun):
            alone = self.never_one and end == left + 1 and bool(left or any(begun))
            if alone and end < width:
                continue  # no state is taken here
            at = self.table.slots
            piece, real = ids[:, left:end], valid[:, left:end]
            if alone:  # beside padding, behind which there is no state
                piece, real = (
                    torch.cat([piece, piece], dim=1),
                    torch.cat([real, torch.zeros_like(real)], dim=1),
                )
            self.table.append(piece, real)
            model_cache = KVCache()
            model_cache.told_more = self.told_more
            model_cache.layers = self.layout.layers(self.kv, states)
            pieces.append(forward(self.table, at, model_cache, self.kv)[:, : end - left])
            states = self.layout.states(model_cache.layers)
            if end in cuts and not alone:
                self._remember(states, begun, counts, end)
            left = end
        hidden = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
        return _Fed(paths, begun, hidden)

    def _cuts(
        self, counts: Sequence[int], begun: Sequence[int], certain: Sequence[int] | None
    ) -> list[int]:
        """Behind which tokens states are asked for, in ascending order; the last is among them."""
        if not self.drafting:
            return sorted({n for n in counts if n > 0}) or [1]
        cuts = {max(1, *counts)}
        if certain is not None:
            pairs = zip(certain, begun, counts, strict=True)
            again = [min(sure - tokens, n) for sure, tokens, n in pairs]
            if max(again) > MOST_AGAIN:
                cuts.add(min(n for n in again if n > MOST_AGAIN // 2))
        return sorted(cuts)

    def _ends(self, cuts: list[int], begun: Sequence[int]) -> list[int]:
        """Where passes end: at these cuts, and of a model that must go one by one at each token."""
        if not self.one_by_one:
            return cuts
        first = 0 if any(begun) else cuts[0]
        return [*([first] if first else []), *range(first + 1, cuts[-1] + 1)]

    def _stacked(self) -> States | None:
        """The states from which the rows go on, ``[B, *]``: copies, since they are written to."""
        last = [mine[-1].states for mine in self.rows]
        some = next((states for states in last if states is not None), None)
        if some is None:
            return None
        zeros = [[torch.zeros_like(x) for x in layer] for layer in some] if None in last else []
        filled_up = [zeros if states is None else states for states in last]
        return [
            [torch.stack(of_rows) for of_rows in zip(*of_layer, strict=True)]
            for of_layer in zip(*filled_up, strict=True)
        ]

    def _remember(
        self,
        states: States,
        begun: Sequence[int],
        counts: Sequence[int],
        cut: int,
    ) -> None:
        """Take the states ``[B, *]`` of the rows that have run no padding before a cut."""
        # Those of all rows stay where they are, unless they are written to, or one row kept them.
        stay = all(n == cut for n in counts)
        for row, (mine, tokens) in enumerate(zip(self.rows, begun, strict=True)):
            if counts[row] < cut:
                continue
            own = [[x[row] if stay else x[row].clone() for x in layer] for layer in states]
            snapshot = Snapshot(tokens + cut, own)
            self.rows[row] = [*mine, snapshot] if self.drafting else [snapshot]


class _Path(NamedTuple):
    """The tokens of a row of a batch that make one text.

    Attributes:
        row: Of the batch's table.
        slots: ``[n]`` there.
    """

    row: int
    slots: Tensor


class _Part(NamedTuple):
    """Groups of texts that are run side by side.

    Attributes:
        cache: What they go on from.
        rows: The row of each group there.
        groups: Texts that go on from the same row.
    """

    cache: StateCache
    rows: list[int]
    groups: list[list[_Path]]


class _Fed(NamedTuple):
    """What a pass gave.

    Attributes:
        paths: Of B rows.
        begun: How many tokens of each come before the pass.
        hidden: ``[B, n, H]`` hidden states.
    """

    paths: Sequence[_Path]
    begun: Sequence[int]
    hidden: Tensor


def _common(paths: Sequence[_Path], begun: int) -> int:
    """How many tokens to run for all of some texts of a row, of which some are run already.

    All that they have in common, if that saves much; else, of several, no more.
    """
    if len(paths) == 1:
        return len(paths[0].slots)
    least = min(len(path.slots) for path in paths)
    rows = torch.stack([path.slots[:least] for path in paths])  # [texts, least]
    same = int((rows == rows[0]).all(dim=0).long().cumprod(dim=0).sum())
    return same if (same - begun) * (len(paths) - 1) >= _WORTH else begun


def _divided(paths: Sequence[_Path], end: int) -> list[list[_Path]]:
    """Some texts by the token behind their first ``end``; each alone if that has not been run."""
    groups: dict[int, list[_Path]] = {}
    for path in paths:
        groups.setdefault(int(path.slots[end]), []).append(path)
    return list(groups.values()) if len(groups) > 1 else [[path] for path in paths]


def branch_paths(table: Tokens, start: int) -> Iterator[_Path]:
    """The texts of rows that branch: one for each token from ``start`` on that none follows.

    Args:
        table: Of the batch, whose last tokens branch.
        start: The first new slot.
    """
    assert table.branches is not None
    until = table.branches.until[:, : table.slots]
    for row, valid in enumerate(table.valid):
        own = valid.nonzero()[:, 0].tolist()
        for slot, after in zip(own, [*own[1:], table.slots], strict=True):
            if slot >= start and (after >= int(until[row, slot]) or after == table.slots):
                yield _Path(row, table.path(row, slot))


def _is_chain(until: Tensor) -> bool:
    """Whether no two of a row's new tokens, now or to come, follow the same token.

    Args:
        until: Of all its slots, the slot from which on each is hidden.
    """
    ends = until[until > torch.arange(len(until))]  # padding sees to itself alone
    ends = ends[ends < torch.iinfo(torch.long).max]  # what is there already
    return len(ends.unique()) < 2


def _gathered(fed: Sequence[_Fed], table: Tokens, start: int, wanted: Tensor | None) -> Tensor:
    """``[K, H]`` hidden states of the wanted tokens, which are on some path; others are any."""
    place = torch.zeros(table.ids.shape[0], table.slots - start, dtype=torch.long)
    base = 0
    for one in fed:
        width = one.hidden.shape[1]
        for path, begun in zip(one.paths, one.begun, strict=True):
            run = path.slots[begun:]
            columns = (run >= start).nonzero()[:, 0]  # those before are run again
            place[path.row, run[columns] - start] = base + columns
            base += width
    flat = [one.hidden.flatten(0, 1) for one in fed]
    states = flat[0] if len(flat) == 1 else torch.cat(flat)
    index = place.flatten() if wanted is None else place.flatten()[wanted]
    return states[to_device(index, states.device)]
