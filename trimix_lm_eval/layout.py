"""The token table that all sources of a batch share.

One table, several caches: padding, shared prefixes and tokens taken back are all just slots that a
query may or may not see.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Layout:
    """The token table of a batch: one row per sequence, one column per cache slot.

    Padding is a slot that nobody sees. A row's positions count its valid tokens only.

    Attributes:
        ids: ``[B, S]`` token ids.
        positions: ``[B, S]`` position of each token in its row.
        valid: ``[B, S]`` False for padding.
        length: ``[B]`` valid tokens so far.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.ids = torch.zeros(rows, 0, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, 0, dtype=torch.long, device=device)
        self.valid = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        self.length = torch.zeros(rows, dtype=torch.long, device=device)

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

    def select(self, rows: Tensor) -> Layout:
        """A table of these rows (repeats allowed)."""
        rows = rows.to(self.ids.device)
        chosen = Layout(0, self.ids.device)
        chosen.ids, chosen.positions = self.ids[rows], self.positions[rows]
        chosen.valid, chosen.length = self.valid[rows], self.length[rows]
        return chosen

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
