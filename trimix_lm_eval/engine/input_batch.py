"""A batch of running sequences: one token table for all sources, one cache for each.

Padding, shared prefixes and rejected drafts are nothing special: they are slots that a query may or
may not see. Masks are made once and serve every source that wants the same.

Invariant 2: a row's result depends on its own valid tokens alone, since positions count these only
and the mask hides every other slot; in fewer bits than fp32 kernels round by shape.

Longer than most modules, since every change of a batch (fork, crop, shrink, concat) is one of the
table and of the caches in step, and is read as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from trimix_lm_eval.engine.model_runner import Ensemble
from trimix_lm_eval.engine.request import TreePlaces
from trimix_lm_eval.fusion.logits import to_device
from trimix_lm_eval.utils.errors import TrimixError, is_out_of_memory

#: Entries of the attention mask of one chunk: 64 MiB in fp32.
MASK_ENTRIES = 2**24


class InputBatch:
    """Running sequences: one token table, one cache per source.

    Args:
        ensemble: The sources.
        table: The token table.
        caches: One per source.
        prefix_lengths: Of each row, the tokens of its shared prefix (see `fork_shared`); None if
            no row has one.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        table: TokenTable,
        caches: list[Any],
        prefix_lengths: Sequence[int] | None = None,
    ) -> None:
        self.ensemble, self.table, self.caches = ensemble, table, caches
        self.prefix_lengths = list(prefix_lengths or [0] * table.ids.shape[0])

    @classmethod
    def empty(cls, ensemble: Ensemble, rows: int) -> InputBatch:
        """A batch of ``rows`` sequences without tokens."""
        caches = [source.new_cache(rows) for source in ensemble.sources]
        return cls(ensemble, TokenTable(rows, ensemble.device), caches)

    def extend(self, ids: Tensor, valid: Tensor, wanted: Tensor) -> list[Tensor]:
        """Feed tokens to every source.

        Args:
            ids: ``[B, n]`` token ids.
            valid: ``[B, n]`` False for padding.
            wanted: ``[B, n]`` (on the CPU) True where the hidden state is asked for.

        Returns:
            One ``[K, H]`` tensor per source, K = number of wanted tokens, row by row.
        """
        start = self.table.slots
        self.table.append(ids, valid)
        index = wanted.flatten().nonzero().squeeze(1)
        return [self.run(s, start, index) for s in range(len(self.caches))]

    def feed(
        self, ids: Tensor, valid: Tensor, wanted: Tensor
    ) -> Iterator[tuple[int, Tensor, list[Tensor]]]:
        """Feed many tokens to every source, a chunk of columns at a time.

        Args:
            ids: ``[B, T]`` token ids, on the CPU.
            valid: ``[B, T]`` False for padding.
            wanted: ``[B, T]`` True where the hidden state is asked for.

        Yields:
            (row, ``[k]`` its wanted columns in this chunk, one ``[k, H]`` tensor per source), chunk
            by chunk, so in order for each row; nothing for a chunk without wanted columns.
        """
        start = 0
        while start < ids.shape[1]:
            rows, held = self.table.ids.shape
            most = chunk_columns(rows, held, self.ensemble.chunk_tokens)
            columns = slice(start, min(start + most, ids.shape[1]))
            hidden = self.extend(ids[:, columns], valid[:, columns], wanted[:, columns])
            at = 0
            for row in range(ids.shape[0]):
                slots = wanted[row, columns].nonzero().squeeze(1) + start
                if len(slots):
                    yield row, slots, [h[at : at + len(slots)] for h in hidden]
                    at += len(slots)
            start = columns.stop

    def run(self, which: int, start: int, wanted: Tensor | None = None) -> Tensor:
        """Run one source over the tokens from slot ``start`` on, which are in the table already.

        Args:
            which: Index of the source; its cache ends before ``start``.
            start: First slot to be run.
            wanted: ``[K]`` flat indices into the ``[B, n]`` tokens; None is all of them.

        Returns:
            ``[K, H]`` hidden states.

        Raises:
            TrimixError: The model's own code failed, other than for want of memory.
        """
        source = self.ensemble.sources[which]
        try:
            return source.forward(self.table, start, self.caches[which], wanted)
        except Exception as error:  # a model's own code may raise anything
            if is_out_of_memory(error):
                raise
            raise TrimixError(
                f"The forward pass of {source.name} failed: {type(error).__name__}: {error}",
                "what was finished is kept (--use_cache); try that model alone with --model hf",
            ) from error

    def begin_draft(self) -> None:
        """Let tokens that come now be dropped again: `keep` them, or rewind."""
        for cache in self.caches:
            if cache is not None:
                cache.begin_draft(self.table.length.tolist())

    def end_draft(self) -> None:
        """What comes now stays."""
        for cache in self.caches:
            if cache is not None:
                cache.end_draft()

    def crop(self, slots: int) -> None:
        """Cut off all but the first ``slots`` slots, which must hold every valid token."""
        if slots == self.table.slots:
            return
        self.table.crop(slots)
        for cache in self.caches:
            if cache is not None:
                cache.crop(slots - self.table.shared)

    def rewind(self, slots: int) -> None:
        """Forget every token behind the first ``slots`` slots, and that they branched."""
        self.table.keep(slots, torch.zeros(len(self.table.length), dtype=torch.long))
        self.crop(slots)
        self.table.branches = None
        self.end_draft()

    def shrink(self, rows: Sequence[int]) -> list[int]:
        """Drop all rows but these, in place: nothing is copied but what closes the gaps.

        Args:
            rows: The indices of the rows that stay, each once.

        Returns:
            The same indices in the order in which the rows now are.
        """
        behind = [row for row in rows if row >= len(rows)]
        stay = set(rows)
        order = [row if row in stay else behind.pop() for row in range(len(rows))]
        self.table = self.table.select(torch.tensor(order, dtype=torch.long))
        for cache in self.caches:
            if cache is not None:
                cache.shrink(order)
        self.prefix_lengths = [self.prefix_lengths[row] for row in order]
        return order

    def width(self, rows: Sequence[int], tokens: Sequence[int]) -> int:
        """How many slots some rows need behind their shared prefixes.

        Args:
            rows: The indices of the rows.
            tokens: How many tokens each of them has.
        """
        return max(
            count - self.prefix_lengths[row] for row, count in zip(rows, tokens, strict=True)
        )

    def fork(
        self,
        rows: Sequence[int],
        tokens: Sequence[int] | None = None,
        start: int = 0,
        counts: Sequence[int] | None = None,
    ) -> InputBatch:
        """A copy of some rows, to be continued on its own.

        Args:
            rows: The indices of the rows; repeats are allowed.
            tokens: How many tokens each copy has: then holes are left out. None keeps all slots.
            start: A slot; before it, everything is kept.
            counts: How many slots of each copy are kept from ``start`` on; None is all of them.
        """
        index = torch.tensor(list(rows), dtype=torch.long)
        table = self.table.select(index)
        if counts is not None:
            table.keep(start, torch.tensor(list(counts)))
        slots = None
        if tokens is not None:
            slots = table.packed(self.width(rows, tokens))
            table = table.select(torch.arange(len(index)), slots)
        caches = [None if cache is None else cache.select(index, slots) for cache in self.caches]
        return InputBatch(self.ensemble, table, caches, [self.prefix_lengths[row] for row in rows])

    def fork_shared(self, rows: Sequence[int]) -> InputBatch:
        """New rows that continue some of these, each of which is held once as a shared prefix.

        Args:
            rows: For each new row, the index of the row that it continues; repeats are allowed.
        """
        if not self.ensemble.shares_prefixes:
            return self.fork(rows)
        distinct = list(dict.fromkeys(rows))
        prefix_of = [distinct.index(row) for row in rows]
        table = self.table.fork_shared(distinct, prefix_of)
        own = [self.table.own(row) for row in distinct]
        caches = [
            None if c is None else c.fork_shared(distinct, own, prefix_of) for c in self.caches
        ]
        return InputBatch(self.ensemble, table, caches, table.length.tolist())

    def concat(self, other: InputBatch) -> InputBatch:
        """The rows of this batch and another's below them, as one batch."""
        table = concat_tables([self.table, other.table])
        own = table.slots - table.shared
        pairs = zip(self.caches, other.caches, strict=True)
        caches = [None if a is None else a.concat(b, own) for a, b in pairs]
        lengths = [*self.prefix_lengths, *other.prefix_lengths]
        return InputBatch(self.ensemble, table, caches, lengths)


class TokenTable:
    """The tokens of a batch: one row per sequence, one column per slot of the caches.

    Padding is a slot that no query sees. A row's positions count its valid tokens only. Which token
    stands in a slot may be known to a GPU alone; whether one does is always known to the host, so
    that nothing here waits.

    Args:
        rows: The number of sequences, which have no tokens yet.
        device: Where the token ids live.

    Attributes:
        ids: ``[B, S]`` token ids.
        positions: ``[B, S]`` position of each token in its row, on the CPU.
        valid: ``[B, S]`` False for padding, on the CPU.
        length: ``[B]`` valid tokens so far, on the CPU.
        branches: Where all tokens stand, those to come too, while the last ones branch (see
            `branch`); else None.
        shared: The leading columns that hold shared prefixes, each of which the caches hold once
            for all its rows: they stay where they are when slots are packed.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.ids = torch.zeros(rows, 0, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, 0, dtype=torch.long)
        self.valid = torch.zeros(rows, 0, dtype=torch.bool)
        self.length = torch.zeros(rows, dtype=torch.long)
        self.branches: TreePlaces | None = None
        self.shared = 0
        self._masks: dict[tuple[object, ...], Tensor] = {}
        #: Positions and valid slots by device, as long as they are what the host has.
        self._sent: dict[torch.device, tuple[Tensor, Tensor, Tensor | None]] = {}

    @property
    def slots(self) -> int:
        """Columns so far."""
        return self.ids.shape[1]

    def append(self, ids: Tensor, valid: Tensor) -> None:
        """Add ``[B, n]`` tokens as n new slots; ``valid`` is on the CPU."""
        ids = to_device(ids, self.ids.device)
        counted = valid.long().cumsum(dim=1)  # [B, n]
        positions = (self.length[:, None] + counted - 1).clamp_min(0)
        if self.branches is not None:
            positions = self.branches.positions[:, self.slots : self.slots + ids.shape[1]]
        self.ids = torch.cat([self.ids, ids], dim=1)
        self.positions = torch.cat([self.positions, positions], dim=1)
        self.valid = torch.cat([self.valid, valid], dim=1)
        self.length = self.length + counted[:, -1]
        self._changed()

    def branch(self, places: TreePlaces, valid: Tensor) -> None:
        """Let the next tokens branch; then rows are only extended, until they are rewound.

        Args:
            places: Where the next n tokens of each row stand, counted from the row's end.
            valid: ``[B, n]`` False for padding.
        """
        ahead = places.positions - (~valid).long()  # padding stands within the context, too
        positions = (self.length[:, None] + ahead).clamp_min(0)
        always = torch.full_like(self.positions, torch.iinfo(torch.long).max)
        self.branches = TreePlaces(
            torch.cat([self.positions, positions], dim=1),
            torch.cat([always, self.slots + places.until], dim=1),
        )

    def _changed(self) -> None:
        """Forget what was made of the slots as they were."""
        self._masks.clear()
        self._sent.clear()

    def keep(self, start: int, counts: Tensor) -> None:
        """Keep, of the slots from ``start`` on, the first ``[B]`` ``counts`` of each row.

        The others become holes; those at the end that no row keeps are to be cut off with `crop`.
        """
        kept = torch.arange(self.slots - start) < counts[:, None]  # [B, n]
        dropped = (self.valid[:, start:] & ~kept).sum(dim=1)
        self.valid = torch.cat([self.valid[:, :start], self.valid[:, start:] & kept], dim=1)
        self.length = self.length - dropped
        self._changed()

    def forget(self, tokens: Tensor) -> None:
        """Keep the first ``[B]`` tokens of each row; the slots of the others become holes."""
        if bool((self.length > tokens).any()):
            self.valid = self.valid & (self.positions < tokens[:, None])
            self.length = torch.minimum(self.length, tokens)
            self._changed()

    def crop(self, slots: int) -> None:
        """Cut off all but the first ``slots`` columns, which must hold every valid token."""
        self.ids, self.positions = self.ids[:, :slots], self.positions[:, :slots]
        self.valid = self.valid[:, :slots]
        self._changed()

    def select(self, rows: Tensor, slots: Tensor | None = None) -> TokenTable:
        """A table of some rows.

        Args:
            rows: ``[R]`` indices, on the CPU; repeats allowed.
            slots: ``[R, W]`` which columns of each, in order, all valid tokens among them, counted
                behind the shared ones, which are kept too; None keeps all. On the CPU.
        """
        if slots is None:
            return self._chosen(rows, None, self.shared)
        shared = torch.arange(self.shared).expand(len(rows), -1)
        return self._chosen(rows, torch.cat([shared, slots + self.shared], dim=1), self.shared)

    def _chosen(self, rows: Tensor, slots: Tensor | None, shared: int) -> TokenTable:
        """A table of some rows, and of each row of it the columns ``[R, W]``."""
        chosen = TokenTable(0, self.ids.device)
        chosen.length, chosen.shared = self.length[rows], shared
        chosen.positions, chosen.valid = self.positions[rows], self.valid[rows]
        chosen.ids = self.ids[to_device(rows, self.ids.device)]
        if slots is not None:
            chosen.positions = chosen.positions.gather(1, slots)
            chosen.valid = chosen.valid.gather(1, slots)
            chosen.ids = chosen.ids.gather(1, to_device(slots, self.ids.device))
        return chosen

    def fork_shared(self, rows: Sequence[int], prefix_of: Sequence[int]) -> TokenTable:
        """A table of new rows that have some of these as shared prefixes, and no more tokens yet.

        Args:
            rows: The R rows that become prefixes.
            prefix_of: For each new row, which of ``rows`` is its prefix.
        """
        at = torch.tensor(list(rows))
        width = int(self.length[at].max())
        slots = (~self.valid[at]).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        place = torch.tensor(list(prefix_of))
        return self._chosen(at[place], slots[place], width)

    def path(self, row: int, slot: int) -> Tensor:
        """The slots that a token of a row sees, in order, its own among them; on the CPU."""
        seen = self.valid[row, : slot + 1].clone()
        if self.branches is not None:
            seen &= self.branches.until[row, : slot + 1] > slot
        return seen.nonzero()[:, 0]

    def own(self, row: int) -> Tensor:
        """Valid slots of a row, counted behind the shared ones, on the CPU."""
        return self.valid[row, self.shared :].nonzero()[:, 0]

    def packed(self, width: int) -> Tensor:
        """``[B, width]`` each row's valid slots in order; where there are fewer, holes after.

        Slots are counted behind the shared ones; on the CPU.
        """
        holes = (~self.valid[:, self.shared :]).to(torch.uint8)
        return holes.argsort(dim=1, stable=True)[:, :width]

    def visible(
        self,
        start: int,
        window: int | None = None,
        block: int | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Which slots the tokens from slot ``start`` on may see.

        Args:
            start: First query slot.
            window: A sliding window: only the last ``window`` positions, oneself included.
            block: Chunked attention: only positions of one's own block of this size.
            device: Where the answer is needed; None is where the token ids are.

        Returns:
            ``[B, n, S]`` True where query sees key. Every query sees itself, padding too: a row
            of a softmax that sees nothing is NaN.
        """
        device = device or self.ids.device
        if device not in self._sent:
            branches = self.branches
            until = branches and to_device(branches.until[:, : self.slots], device)
            sent = to_device(self.positions, device), to_device(self.valid, device)
            self._sent[device] = *sent, until
        positions, valid, until = self._sent[device]
        query = positions[:, start:, None]  # [B, n, 1]
        key = positions[:, None, :]  # [B, 1, S]
        slots = torch.arange(self.slots, device=device)
        earlier = slots[None, :] <= slots[start:, None]  # [n, S]
        seen = valid[:, None, :] & (key <= query) & earlier
        if until is not None:
            seen &= slots[None, start:, None] < until[:, None, :]
        if window is not None:
            seen &= query - key < window
        if block is not None:
            seen &= query // block == key // block
        return seen | (slots[None, :] == slots[start:, None])

    def mask(
        self,
        start: int,
        window: int | None,
        block: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        """`visible` as an additive mask, made once for all sources that ask for the same.

        Returns:
            ``[B, 1, n, S]``, 0 where seen, the dtype's minimum elsewhere: understood by every
            attention kernel.
        """
        key = (start, window, block, dtype, device)
        if key not in self._masks:
            seen = self.visible(start, window, block, device).unsqueeze(1)
            mask = torch.zeros(seen.shape, dtype=dtype, device=device)
            self._masks[key] = mask.masked_fill_(~seen, torch.finfo(dtype).min)
        return self._masks[key]


def chunk_columns(rows: int, slots: int, chunk_tokens: int) -> int:
    """Columns of the next chunk: few enough that neither it nor its mask grows with the text.

    A mask has rows * columns * (slots + columns) entries; ``slots`` of each row are filled so far.
    """
    room = MASK_ENTRIES / rows
    return max(1, min(chunk_tokens // rows, int(((slots * slots + 4 * room) ** 0.5 - slots) / 2)))


def concat_tables(tables: Sequence[TokenTable]) -> TokenTable:
    """The rows of several tables below each other; narrower ones are filled up with holes."""
    whole = TokenTable(0, tables[0].ids.device)
    whole.shared = max(table.shared for table in tables)
    own = max(table.slots - table.shared for table in tables)

    def wide(column: Tensor, table: TokenTable) -> Tensor:
        pad = torch.nn.functional.pad
        shared, mine = column[:, : table.shared], column[:, table.shared :]
        parts = [
            pad(shared, (0, whole.shared - shared.shape[1])),
            pad(mine, (0, own - mine.shape[1])),
        ]
        return torch.cat(parts, dim=1)

    whole.ids = torch.cat([wide(table.ids, table) for table in tables])
    whole.positions = torch.cat([wide(table.positions, table) for table in tables])
    whole.valid = torch.cat([wide(table.valid, table) for table in tables])
    whole.length = torch.cat([table.length for table in tables])
    return whole
