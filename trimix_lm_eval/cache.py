"""Keys and values of one source, in buffers with room to grow.

transformers' dynamic cache copies all of itself for every token; here a token is written into a
buffer that doubles when it is full. Rows and slots can be taken, cut off and put together, so that
finished rows leave a batch, new ones join it, and rejected drafts go.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

#: A buffer grows by this share of what it must hold, and by no fewer slots than these.
_GROWTH, _LEAST = 0.25, 32


class GrowingLayer(DynamicLayer):
    """One layer: views ``[B, heads, S, D]`` of the used part of two larger buffers."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append ``[B, heads, n, D]`` keys and values; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [_empty_like(key_states), _empty_like(value_states)]
        used = self.get_seq_length()
        self.keys, self.values = self._append(used, [key_states, value_states])
        return self.keys, self.values

    def _append(self, used: int, new: Sequence[Tensor]) -> list[Tensor]:
        total = used + new[0].shape[2]
        views = []
        for i, states in enumerate(new):
            buffer = self._buffers[i]
            if buffer.shape[2] < total:
                room = max(int(total * _GROWTH), _LEAST)
                batch, heads, _, size = states.shape
                grown = states.new_empty(batch, heads, total + room, size)
                grown[:, :, :used] = buffer[:, :, :used]
                self._buffers[i] = buffer = grown
            buffer[:, :, used:total] = states
            views.append(buffer[:, :, :total])
        return views

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Hold these, and nothing else, from now on."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._buffers = [keys, values]
        self.keys, self.values = keys, values

    def trim(self, slots: int) -> None:
        """Forget all but the first slots."""
        self.keys, self.values = self.keys[:, :, :slots], self.values[:, :, :slots]


class GrowingCache(DynamicCache):
    """A cache of `GrowingLayer`, one per layer of the model, made when the layer first runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = GrowingLayer

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, without the room to grow."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    def trim(self, slots: int) -> None:
        """Forget all but the first slots."""
        for layer in self.layers:
            layer.trim(slots)

    def taken(self, rows: Tensor, slots: Tensor | None = None) -> GrowingCache:
        """A copy of some rows.

        Args:
            rows: ``[R]`` indices; repeats allowed.
            slots: ``[R, W]`` which slots of each, in order; None takes all.
        """
        copy = GrowingCache()
        for layer in self.layers:
            mine = GrowingLayer()
            at = rows.to(layer.keys.device)
            pair = [layer.keys[at], layer.values[at]]
            if slots is not None:
                place = slots.to(at.device)[:, None, :, None]
                pair = [x.gather(2, place.expand(-1, x.shape[1], -1, x.shape[3])) for x in pair]
            mine.hold(*pair)
            copy.layers.append(mine)
        return copy


def stacked(caches: Sequence[GrowingCache], slots: int) -> GrowingCache:
    """The rows of several caches below each other, each filled up with zeros to ``slots``.

    Zeros, since what lies there is multiplied by an attention weight of 0 and must be finite.
    """
    together = GrowingCache()
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        mine = GrowingLayer()
        pair = []
        for parts in ([x.keys for x in layers], [x.values for x in layers]):
            padded = [torch.nn.functional.pad(x, (0, 0, 0, slots - x.shape[2])) for x in parts]
            pair.append(torch.cat(padded))
        mine.hold(*pair)
        together.layers.append(mine)
    return together


def _empty_like(states: Tensor) -> Tensor:
    batch, heads, _, size = states.shape
    return states.new_empty(batch, heads, 0, size)
