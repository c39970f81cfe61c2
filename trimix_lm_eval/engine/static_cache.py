"""Keys and values at fixed addresses, for decoding steps that are captured as CUDA graphs.

A row's token at position p lies in slot p. So which slots a query sees follows from its position
alone, a draft that was rejected is overwritten by the token that took its place, and nothing ever
has to be packed. A batch has a fixed number of rows and of slots; rows that are not in use compute
along, and what they hold is of no consequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from trimix_lm_eval.engine.kv_cache import KVCache
from trimix_lm_eval.engine.model_runner import ModelRunner


class StaticLayer(DynamicLayer):
    """One layer: ``[B, S, heads, D]`` keys and values, made when the first rows come."""

    def __init__(self, cache: StaticCache) -> None:
        super().__init__()
        self._cache = cache

    def allocate(self, like: Tensor, rows: int, slots: int) -> None:
        """Make room for ``rows`` rows of ``slots`` slots; ``like`` is ``[*, heads, *, D]``."""
        _, heads, _, size = like.shape
        # Zeros: what is not seen is multiplied by 0, and must be a number.
        self.held = [like.new_zeros(rows, slots, heads, size) for _ in range(2)]
        self.keys, self.values = (x.transpose(1, 2) for x in self.held)
        self.dtype, self.device, self.is_initialized = like.dtype, like.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write ``[B, heads, n, D]`` states into the slots of the step; returns all slots."""
        where = (self._cache.rows[:, None], self._cache.slots)
        for held, states in zip(self.held, (key_states, value_states), strict=True):
            held.index_put_(where, states.transpose(1, 2))
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """None that the model could count positions by: they are given."""
        return 0


class StaticCache(DynamicCache):
    """The cache of one source for B rows of S slots.

    Args:
        like: A cache of the same source that holds something.
        rows: B.
        slots: S.

    Attributes:
        slots: ``[B, n]`` where the tokens of the next forward pass go: their positions.
    """

    def __init__(self, like: KVCache, rows: int, slots: int) -> None:
        super().__init__()
        device = like.layers[0].keys.device
        self.rows = torch.arange(rows, device=device)
        self.slots = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.layers = []
        for layer in like.layers:
            mine = StaticLayer(self)
            mine.allocate(layer.keys, rows, slots)
            self.layers.append(mine)

    def take(self, other: KVCache, rows: list[int], prefix_lengths: list[int]) -> None:
        """Copy the rows of another cache, slot by slot in the order of their positions.

        Args:
            other: Its slots are packed: those of a row hold its tokens in order.
            rows: For each of its rows, which row of this cache it becomes.
            prefix_lengths: Of each of its rows, the tokens of its shared prefix.
        """
        shared = other.shared
        for index, layer in enumerate(self.layers):
            theirs = other.layers[index]
            count = theirs.keys.shape[2]
            for held, states in zip(layer.held, (theirs.keys, theirs.values), strict=True):
                for at, (row, before) in enumerate(zip(rows, prefix_lengths, strict=True)):
                    end = min(before + count, held.shape[1])
                    held[row, before:end] = states[at, :, : end - before].transpose(0, 1)
            if shared is None:
                continue
            for at, row in enumerate(rows):
                prefix = shared.prefix_of[at]
                if prefix is not None:
                    pair = shared.prefixes[prefix][index]
                    for held, states in zip(layer.held, pair, strict=True):
                        held[row, : states.shape[1]] = states.transpose(0, 1)

    def move(self, other: StaticCache, rows: list[int]) -> None:
        """Copy rows of another cache of this kind to the first rows, as many slots as both have."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            for held, source in zip(mine.held, theirs.held, strict=True):
                count = min(held.shape[1], source.shape[1])
                for to, row in enumerate(rows):
                    held[to, :count] = source[row, :count]


class StepMasks:
    """The masks of a decoding step for one source, made once for all its passes.

    Args:
        runner: The source.
        positions: ``[B, n]`` positions of the step's tokens, which are their slots.
        slots: S, how many there are; a multiple of 16, or kernels of attention pad the mask.
    """

    def __init__(self, runner: ModelRunner, positions: Tensor, slots: int) -> None:
        self.runner = runner
        config = runner.config
        heads = getattr(config, "num_attention_heads", 1)
        #: Heads that share a key: `kv_cache` lets them ask as queries of one.
        self.repeats = heads // (getattr(config, "num_key_value_heads", None) or heads)
        self.masks = {
            kind: self._additive(positions, slots, window, block)
            for kind, (window, block) in runner.mask_kinds().items()
        }

    def _additive(
        self, positions: Tensor, slots: int, window: int | None, block: int | None
    ) -> Tensor:
        """``[B, 1, n, S]``, 0 where seen, the dtype's minimum elsewhere."""
        key = torch.arange(slots, device=positions.device)
        query = positions[:, None, :, None]  # [B, 1, n, 1]
        hidden = key > query
        if window is not None:
            hidden = hidden | (key <= query - window)
        if block is not None:
            hidden = hidden | (key // block != query // block)
        dtype = self.runner.dtype
        mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
        return mask.masked_fill_(hidden, torch.finfo(dtype).min)

    def one(self, index: int) -> Any:
        """Of one of the step's tokens: by kind of layer, if the model wants it so."""
        return self._given(
            {
                kind: mask[:, :, index : index + 1].expand(-1, -1, self._rows, -1)
                for kind, mask in self.masks.items()
            }
        )

    def all(self) -> Any:
        """Of all of them."""
        return self._given(
            {kind: mask.repeat(1, 1, self._rows, 1) for kind, mask in self.masks.items()}
        )

    @property
    def _rows(self) -> int:
        return self.repeats if self.runner.shares_prefixes else 1

    def _given(self, masks: dict[str, Tensor]) -> Any:
        return masks if self.runner.masks_by_type else masks[""]
