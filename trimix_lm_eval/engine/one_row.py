"""All rows of a batch as one, for models that take the number of a slot for a position.

Some models compute from the length of the cache where each new token stands, the same for every
row: ``arange(n) + length``. Where rows have padding or a shared prefix that is wrong. As one row of
B * n tokens, whose cache gives as its length a number for each of them, ``arange(B * n) + length``
is every token's own position. Only the attention, which is ours, sees rows.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor


class OneRow:
    """What a model sees of its cache.

    Args:
        cache: The cache.
        positions: ``[B, n]`` positions of the new tokens.
    """

    def __init__(self, cache: Any, positions: Tensor) -> None:
        self._cache, self._rows = cache, len(positions)
        count = torch.arange(positions.numel(), device=positions.device)
        self._before = positions.flatten() - count

    def get_seq_length(self, layer_idx: int = 0) -> Tensor:
        """``[B * n]`` by how much each token's position is more than its place in the row."""
        return self._before

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append ``[1, heads, B * n, D]`` states of one layer to its rows'; returns all of them."""
        keys, values = (
            states[0].unflatten(1, (self._rows, -1)).transpose(0, 1)
            for states in (key_states, value_states)
        )
        pair: tuple[Tensor, Tensor] = self._cache.update(keys, values, layer_idx, *args, **kwargs)
        return pair


def as_one_row(
    body: Any, cache: Any, ids: Tensor, positions: Tensor
) -> tuple[OneRow, dict[str, Tensor]]:
    """A cache and ``[B, n]`` new tokens as a model is given them: as one row of all tokens.

    Args:
        body: The model.
        cache: The cache of all rows.
        ids: The tokens.
        positions: Where they are.

    Returns:
        The cache that the model sees, and its arguments for tokens and positions.
    """
    given = {"input_ids": ids.reshape(1, -1), "position_ids": positions.reshape(1, -1)}
    # Older versions of transformers ask for it, and else compute it from the cache.
    if "cache_position" in inspect.signature(body.forward).parameters:
        given["cache_position"] = positions.flatten()
    return OneRow(cache, positions), given
