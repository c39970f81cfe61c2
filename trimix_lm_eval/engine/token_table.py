"""The token table of a batch, shared by all sources: one table, several caches.

Padding, shared prefixes and rejected drafts are nothing special: they are slots that a query may or
may not see. Masks are made once and serve every source that wants the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class TokenTable:
    """The token table of a batch: one row per sequence, one column per cache slot.

    Padding is a slot that nobody sees. A row's positions count its valid tokens only.

    Attributes:
        ids: ``[B, S]`` token ids.
        positions: ``[B, S]`` position of each token in its row.
        valid: ``[B, S]`` False for padding.
        length: ``[B]`` valid tokens so far.
        common: Leading columns that are held once for all rows that have them (see `cache`): they
            stay where they are when slots are packed.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.ids = torch.zeros(rows, 0, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, 0, dtype=torch.long, device=device)
        self.valid = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        self.length = torch.zeros(rows, dtype=torch.long, device=device)
        self.common = 0
        self._masks: dict[tuple[object, ...], Tensor] = {}

    @property
    def slots(self) -> int:
        """Columns so far."""
        return self.ids.shape[1]

    def append(self, ids: Tensor, valid: Tensor) -> None:
        """Add ``[B, n]`` tokens as n new slots."""
        ids, valid = ids.to(self.ids.device), valid.to(self.ids.device)
        counted = valid.long().cumsum(dim=1)  # [B, n]
        positions = (self.length[:, None] + counted - 1).clamp_min(0)
        self.ids = torch.cat([self.ids, ids], dim=1)
        self.positions = torch.cat([self.positions, positions], dim=1)
        self.valid = torch.cat([self.valid, valid], dim=1)
        self.length = self.length + counted[:, -1]
        self._masks.clear()

    def keep(self, start: int, counts: Tensor) -> None:
        """Of the slots from ``start`` on, keep the first ``[B]`` ``counts`` of each row.

        The others become holes; those at the end that no row keeps are to be cut off with `trim`.
        """
        kept = torch.arange(self.slots - start, device=self.ids.device) < counts[:, None]  # [B, n]
        dropped = (self.valid[:, start:] & ~kept).sum(dim=1)
        self.valid = torch.cat([self.valid[:, :start], self.valid[:, start:] & kept], dim=1)
        self.length = self.length - dropped
        self._masks.clear()

    def trim(self, slots: int) -> None:
        """Cut off all columns but the first, which must hold every valid token."""
        self.ids, self.positions = self.ids[:, :slots], self.positions[:, :slots]
        self.valid = self.valid[:, :slots]
        self._masks.clear()

    def select(self, rows: Tensor, slots: Tensor | None = None) -> TokenTable:
        """A table of some rows.

        Args:
            rows: ``[R]`` indices; repeats allowed.
            slots: ``[R, W]`` which columns of each, in order, all valid tokens among them, counted
                behind the common ones, which are taken too; None takes all.
        """
        rows = rows.to(self.ids.device)
        chosen = TokenTable(0, self.ids.device)
        chosen.length, chosen.common = self.length[rows], self.common
        tables = [self.ids[rows], self.positions[rows], self.valid[rows]]
        if slots is not None:
            slots = slots.to(self.ids.device)
            tables = [
                torch.cat([x[:, : self.common], x[:, self.common :].gather(1, slots)], dim=1)
                for x in tables
            ]
        chosen.ids, chosen.positions, chosen.valid = tables
        return chosen

    def branched(self, rows: Sequence[int], of: Sequence[int]) -> TokenTable:
        """A table of new rows whose common columns are some rows' tokens.

        Args:
            rows: ``R`` indices of the rows that are begun with.
            of: For each new row, which of ``rows`` it begins with.
        """
        at = torch.tensor(list(rows)).to(self.ids.device)
        width = int(self.length[at].max())
        slots = (~self.valid[at]).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        tables = [x[at].gather(1, slots) for x in (self.ids, self.positions, self.valid)]
        place = torch.tensor(list(of)).to(self.ids.device)
        new = TokenTable(0, self.ids.device)
        new.ids, new.positions, new.valid = (table[place] for table in tables)
        new.length, new.common = self.length[at][place], width
        return new

    def own(self, row: int) -> Tensor:
        """Valid slots of a row, counted behind the common ones."""
        return self.valid[row, self.common :].nonzero()[:, 0]

    def packed(self, width: int) -> Tensor:
        """``[B, width]`` each row's valid slots in order; where there are fewer, holes after.

        Slots are counted behind the common ones.
        """
        holes = (~self.valid[:, self.common :]).to(torch.uint8)
        return holes.argsort(dim=1, stable=True)[:, :width]

    def visible(self, start: int, window: int | None = None, block: int | None = None) -> Tensor:
        """What the tokens from slot ``start`` on may look at.

        Args:
            start: First query slot.
            window: A sliding window: only the last ``window`` positions, oneself included.
            block: Chunked attention: only positions of one's own block of this size.

        Returns:
            ``[B, n, S]`` True where query sees key. Every query sees itself, padding too: a row
            of a softmax that sees nothing is NaN.
        """
        query = self.positions[:, start:, None]  # [B, n, 1]
        key = self.positions[:, None, :]  # [B, 1, S]
        slots = torch.arange(self.slots, device=self.ids.device)
        earlier = slots[None, :] <= slots[start:, None]  # [n, S]
        seen = self.valid[:, None, :] & (key <= query) & earlier
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
            seen = self.visible(start, window, block).to(device).unsqueeze(1)
            mask = torch.zeros(seen.shape, dtype=dtype, device=device)
            self._masks[key] = mask.masked_fill_(~seen, torch.finfo(dtype).min)
        return self._masks[key]


def joined(layouts: Sequence[TokenTable]) -> TokenTable:
    """The rows of several tables below each other; narrower ones are filled up with holes."""
    together = TokenTable(0, layouts[0].ids.device)
    together.common = max(layout.common for layout in layouts)
    own = max(layout.slots - layout.common for layout in layouts)

    def wide(table: Tensor, layout: TokenTable) -> Tensor:
        pad = torch.nn.functional.pad
        common, mine = table[:, : layout.common], table[:, layout.common :]
        parts = [
            pad(common, (0, together.common - common.shape[1])),
            pad(mine, (0, own - mine.shape[1])),
        ]
        return torch.cat(parts, dim=1)

    together.ids = torch.cat([wide(layout.ids, layout) for layout in layouts])
    together.positions = torch.cat([wide(layout.positions, layout) for layout in layouts])
    together.valid = torch.cat([wide(layout.valid, layout) for layout in layouts])
    together.length = torch.cat([layout.length for layout in layouts])
    return together
