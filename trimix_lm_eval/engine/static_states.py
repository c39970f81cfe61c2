"""States of one source at fixed addresses, for decoding steps that are captured as CUDA graphs.

A round feeds tokens to the source one at a time and keeps the states behind each of them. The next
round knows by how far a row has moved on which of its tokens stand, and goes on from the states
behind the last of these: what a draft was worth needs to be told to nobody, and a draft that was
rejected costs nothing but the copy that is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimix_lm_eval.engine.state_layers import CacheLayout, States, filled


class StaticStates:
    """States of B rows.

    Args:
        layout: Which of the model's layers keep states.
        like: The states of a row, or of several behind each other; of the last dimensions of these.
        rows: B rows.
        depth: Tokens of a round behind which states are kept, at most.
        device: Where the positions of rows are.

    Attributes:
        layers: What the model takes, and writes to; by the number of the layer.
    """

    def __init__(
        self, layout: CacheLayout, like: States, rows: int, depth: int, device: torch.device
    ) -> None:
        self.saved = [
            [x.new_zeros(depth, rows, *x.shape) for x in layer] for layer in like
        ]  # [depth, B, *]
        # Where states are kept behind one token only, the model writes to the place itself.
        self._working = [
            [x[0] if depth == 1 else torch.zeros_like(x[0]) for x in layer] for layer in self.saved
        ]
        self.layers: dict[int, Any] = {
            number: filled(layout.templates[number], states)
            for number, states in zip(layout.stateful, self._working, strict=True)
        }
        self.depth = depth
        self._numbers = torch.arange(rows, device=device)
        #: The positions of the rows when the last round began: [B].
        self._begun = torch.zeros(rows, dtype=torch.long, device=device)

    def begin(self, position: Tensor) -> None:
        """Go on from the states behind the tokens that stand.

        Args:
            position: ``[B]`` of each row's last token, which is yet to be run.
        """
        if self.depth == 1:
            return
        behind = (position - self._begun - 1).clamp(0, self.depth - 1)  # [B]
        self._begun.copy_(position)
        for saved, working in self._pairs():
            working.copy_(saved[behind, self._numbers])

    def keep(self, index: int) -> None:
        """Keep the states behind the round's token of this index."""
        if self.depth > 1:
            for saved, working in self._pairs():
                saved[index].copy_(working)

    def take_rows(self, states: Sequence[States], positions: Tensor, rows: Tensor) -> None:
        """Let rows in.

        Args:
            states: Of each row.
            positions: ``[R]`` of each row's last token, which is yet to be run.
            rows: ``[R]`` their numbers.
        """
        self._begun[rows] = positions - 1
        for which, of_layer in enumerate(zip(*states, strict=True)):
            for i, of_rows in enumerate(zip(*of_layer, strict=True)):
                self.saved[which][i][0, rows] = torch.stack(of_rows)

    def take_all(self, other: StaticStates) -> None:
        """Copy those of fewer rows to the same places."""
        for mine, theirs in zip(self.saved, other.saved, strict=True):
            for new, old in zip(mine, theirs, strict=True):
                new[: len(old), : old.shape[1]] = old
        self._begun[: len(other._begun)] = other._begun

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Kept states with those that the model writes to."""
        return [
            pair
            for saved, working in zip(self.saved, self._working, strict=True)
            for pair in zip(saved, working, strict=True)
        ]
