"""Keys and values of one source, in buffers with room to grow.

transformers' dynamic cache copies all of itself for every token; here a token is written into a
buffer that doubles when it is full. Rows and slots can be taken, cut off and put together, so that
finished rows leave a batch, new ones join it, and rejected drafts go. What several rows begin with
is held once (`SharedPrefixes`); slots are counted without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from trimix_lm_eval.engine.attention import SharedPrefix

#: A buffer grows by this share of what it must hold, and by no fewer slots than these.
_GROWTH, _LEAST = 0.25, 32


class KVCacheLayer(DynamicLayer):
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

    def hold(self, keys: Tensor, values: Tensor, used: int) -> None:
        """Hold the first slots of these, and nothing else from now on; the rest is room."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._buffers = [keys, values]
        self.keys, self.values = keys[:, :, :used], values[:, :, :used]

    def trim(self, slots: int) -> None:
        """Forget all but the first slots."""
        self.keys, self.values = self.keys[:, :, :slots], self.values[:, :, :slots]

    def shrink(self, rows: int, into: Tensor, last: Tensor) -> None:
        """Forget all but the first rows; rows ``last`` have moved ``into`` some of them."""
        used = self.get_seq_length()
        for i, buffer in enumerate(self._buffers):
            buffer[into, :, :used] = buffer[last, :, :used]
            self._buffers[i] = buffer[:rows]
        self.keys, self.values = (buffer[:, :, :used] for buffer in self._buffers)


#: Keys and values of a beginning, ``[heads, P, D]`` each, layer by layer.
Segment = list[tuple[Tensor, Tensor]]


class SharedPrefixes:
    """What the rows of a batch begin with, each beginning once: `Common` for the attention.

    Args:
        stretches: The beginnings.
        of: For each row, which of them it has; None if it has none.
    """

    def __init__(self, stretches: Sequence[Segment], of: Sequence[int | None]) -> None:
        used = list(dict.fromkeys(i for i in of if i is not None))
        self.stretches = [stretches[i] for i in used]
        self.of = [None if i is None else used.index(i) for i in of]
        self._rows = [
            _rows([r for r, mine in enumerate(self.of) if mine == i]) for i in range(len(used))
        ]

    def layer(self, index: int) -> Iterator[SharedPrefix]:
        """Each beginning in one layer, with the rows that have it."""
        for at, (rows, stretch) in enumerate(zip(self._rows, self.stretches, strict=True)):
            keys, values = stretch[index]
            if isinstance(rows, Tensor) and rows.device != keys.device:  # once, mostly
                self._rows[at] = rows = rows.to(keys.device, non_blocking=True)
            yield SharedPrefix(rows, keys, values)

    def taken(self, rows: Sequence[int]) -> SharedPrefixes:
        """Of some rows; repeats allowed."""
        return SharedPrefixes(self.stretches, [self.of[row] for row in rows])

    def joined(self, other: SharedPrefixes) -> SharedPrefixes:
        """Of these rows and another batch's below them."""
        place = {id(stretch): i for i, stretch in enumerate(self.stretches)}
        stretches = list(self.stretches)
        for stretch in other.stretches:
            if place.setdefault(id(stretch), len(stretches)) == len(stretches):
                stretches.append(stretch)
        below = [None if i is None else place[id(other.stretches[i])] for i in other.of]
        return SharedPrefixes(stretches, [*self.of, *below])


def _rows(places: Sequence[int]) -> slice | Tensor:
    """Rows side by side as a slice, which copies nothing; others as indices."""
    if places[-1] - places[0] == len(places) - 1:
        return slice(places[0], places[-1] + 1)
    return torch.tensor(places)


class KVCache(DynamicCache):
    """A cache of `KVCacheLayer`, one per layer of the model, made when the layer first runs.

    Attributes:
        common: What rows begin with; None if they have nothing in common.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = KVCacheLayer
        self.common: SharedPrefixes | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, without the room to grow."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    def trim(self, slots: int) -> None:
        """Forget all but the first slots."""
        for layer in self.layers:
            layer.trim(slots)

    def shrink(self, order: Sequence[int]) -> None:
        """Keep some rows in place: all that are among the first stay where they are.

        Args:
            order: For each row that is left, which one it was: itself, or one behind those left.
        """
        into = torch.tensor([i for i, row in enumerate(order) if row != i], dtype=torch.long)
        last = torch.tensor([row for i, row in enumerate(order) if row != i], dtype=torch.long)
        for layer in self.layers:
            device = layer.keys.device
            layer.shrink(len(order), into.to(device), last.to(device))
        if self.common is not None:
            self.common = self.common.taken(order)

    def taken(self, rows: Tensor, slots: Tensor | None = None) -> KVCache:
        """A copy of some rows.

        Args:
            rows: ``[R]`` indices; repeats allowed.
            slots: ``[R, W]`` which slots of each, in order; None takes all.
        """
        copy = KVCache()
        for layer in self.layers:
            mine = KVCacheLayer()
            at = rows.to(layer.keys.device)
            if slots is None:
                mine.hold(layer.keys[at], layer.values[at], layer.keys.shape[2])
            else:
                # One copy, with room for what comes next: the slots there hold whatever they hold.
                used = slots.shape[1]
                place = _with_room(slots, layer.keys.shape[2]).to(at.device)
                head = torch.arange(layer.keys.shape[1], device=at.device)
                where = (at[:, None, None], head[None, :, None], place[:, None, :])
                mine.hold(layer.keys[where], layer.values[where], used)
            copy.layers.append(mine)
        if self.common is not None:
            copy.common = self.common.taken(rows.tolist())
        return copy

    def branched(self, rows: Sequence[int], slots: Sequence[Tensor], of: Sequence[int]) -> KVCache:
        """A cache of new rows that begin with some of these, and have nothing of their own yet.

        Args:
            rows: Which rows are begun with.
            slots: Of each, which of its own slots count.
            of: For each new row, which of ``rows`` it begins with.
        """
        stretches: list[Segment] = []
        for row, mine in zip(rows, slots, strict=True):
            stretch: Segment = []
            for i, layer in enumerate(self.layers):
                at = mine.to(layer.keys.device)
                pair = [layer.keys[row][:, at], layer.values[row][:, at]]
                begun = self.common.of[row] if self.common is not None else None
                if begun is not None and self.common is not None:
                    before = self.common.stretches[begun][i]
                    pair = [torch.cat([a, b], dim=1) for a, b in zip(before, pair, strict=True)]
                stretch.append((pair[0], pair[1]))
            stretches.append(stretch)
        new = KVCache()
        new.common = SharedPrefixes(stretches, of)
        for keys, values in stretches[0]:
            layer = KVCacheLayer()
            shape = (len(of), keys.shape[0], 0)
            pair = [x.new_empty(*shape, x.shape[2]) for x in (keys, values)]
            layer.hold(pair[0], pair[1], 0)
            new.layers.append(layer)
        return new


def stacked(caches: Sequence[KVCache], slots: int) -> KVCache:
    """The rows of several caches below each other, each filled up with zeros to ``slots``.

    Zeros, since what lies there is multiplied by an attention weight of 0 and must be finite.
    """
    together = KVCache()
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        mine = KVCacheLayer()
        pair = []
        for parts in ([x.keys for x in layers], [x.values for x in layers]):
            padded = [torch.nn.functional.pad(x, (0, 0, 0, slots - x.shape[2])) for x in parts]
            pair.append(torch.cat(padded))
        mine.hold(pair[0], pair[1], slots)
        together.layers.append(mine)
    if any(cache.common for cache in caches):
        none = [SharedPrefixes([], [None] * len(cache.layers[0].keys)) for cache in caches]
        first, *others = [c.common or empty for c, empty in zip(caches, none, strict=True)]
        for other in others:
            first = first.joined(other)
        together.common = first
    return together


def _with_room(slots: Tensor, most: int) -> Tensor:
    """``[R, W]`` slots, and behind them as many more as a buffer has to grow, any that exist."""
    room = max(int(slots.shape[1] * _GROWTH), _LEAST) if most else 0
    return torch.nn.functional.pad(slots, (0, room))


def _empty_like(states: Tensor) -> Tensor:
    batch, heads, _, size = states.shape
    return states.new_empty(batch, heads, 0, size)
