"""Keys and values of one source, and attention over prefixes that rows of a batch share.

The cache: transformers' dynamic cache copies all of itself for every token; here a token is written
into a buffer that grows by a share of its size when it is full. Rows and slots can be selected, cut
off and put together, so that finished rows leave a batch, new ones join it, and rejected drafts go.
A prefix that several rows share is held once (`SharedPrefixes`); slots are counted without it.

The attention: written for decoding, where each row asks for a handful of tokens. transformers'
``sdpa`` repeats keys and values for every head of a group first, and every row reads a prefix of
its own even if all rows have the same. Here the heads of a group ask together, and so do the rows
that share a prefix (Juravsky et al. 2024, "Hydragen"): one matrix product for all of them. It is
offered to transformers as an attention implementation. Longer runs of queries, where the arithmetic
is what takes time, are passed on to ``sdpa``.

Invariant 2, in fp32: neither how slots are stored nor who shares a prefix changes a result.
Invariant 3: scores and sums are fp32 whatever the model is, as in the kernel that ``hf`` would use.
Invariant 4: scores, and what is copied for ``sdpa``, exist for as many queries or rows at a time as
`WORK_BYTES` has room for.

Longer than most modules, since the form of a shared prefix is one decision: the cache makes it, and
the attention is its only reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trimix_lm_eval.fusion.logits import WORK_BYTES, to_device

#: The name under which transformers knows `shared_prefix_attention`.
ATTENTION_NAME = "trimix"
#: Up to so many queries per row are answered here, more are left to ``sdpa``.
FEW_QUERIES = 16
#: What layers tell their attention besides, and what the mask says or what changes nothing.
_IMPLIED = {"dropout", "sliding_window", "is_causal", "position_ids", "use_cache", "chunk_size"}
#: A buffer grows by this share of what it must hold, and by no fewer slots than these.
_GROWTH, _LEAST_GROWTH = 0.25, 32


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
        """Write new states behind the first ``used`` slots, in larger buffers if they are full."""
        total = used + new[0].shape[2]
        views = []
        for i, states in enumerate(new):
            buffer = self._buffers[i]
            if buffer.shape[2] < total:
                room = max(int(total * _GROWTH), _LEAST_GROWTH)
                batch, heads, _, size = states.shape
                grown = states.new_empty(batch, heads, total + room, size)
                grown[:, :, :used] = buffer[:, :, :used]
                self._buffers[i] = buffer = grown
            buffer[:, :, used:total] = states
            views.append(buffer[:, :, :total])
        return views

    def hold(self, keys: Tensor, values: Tensor, used: int) -> None:
        """Hold the first ``used`` slots of these tensors, and nothing else from now on.

        The slots behind them are room to grow.
        """
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._buffers = [keys, values]
        self.keys, self.values = keys[:, :, :used], values[:, :, :used]

    def crop(self, slots: int) -> None:
        """Forget all but the first ``slots`` slots."""
        self.keys, self.values = self.keys[:, :, :slots], self.values[:, :, :slots]

    def shrink(self, rows: int, into: Tensor, last: Tensor) -> None:
        """Forget all but the first rows; rows ``last`` have moved ``into`` some of them."""
        used = self.get_seq_length()
        for i, buffer in enumerate(self._buffers):
            buffer[into, :, :used] = buffer[last, :, :used]
            self._buffers[i] = buffer[:rows]
        self.keys, self.values = (buffer[:, :, :used] for buffer in self._buffers)


#: Keys and values of a prefix, ``[heads, P, D]`` each, layer by layer.
Prefix = list[tuple[Tensor, Tensor]]


class SharedPrefix(NamedTuple):
    """A prefix that some rows share, in one layer.

    Attributes:
        rows: The rows that have it: a slice, or ``[R]`` indices.
        keys: ``[heads, P, D]`` keys of its P tokens.
        values: ``[heads, P, D]`` values of its P tokens.
    """

    rows: slice | Tensor
    keys: Tensor
    values: Tensor


class SharedPrefixes:
    """The prefixes that rows of a batch share, each of them held once.

    Args:
        prefixes: The prefixes.
        prefix_of: For each row the index of its prefix; None if it has none.
    """

    def __init__(self, prefixes: Sequence[Prefix], prefix_of: Sequence[int | None]) -> None:
        used = list(dict.fromkeys(i for i in prefix_of if i is not None))
        self.prefixes = [prefixes[i] for i in used]
        self.prefix_of = [None if i is None else used.index(i) for i in prefix_of]
        self._rows = [
            _row_index([row for row, mine in enumerate(self.prefix_of) if mine == i])
            for i in range(len(used))
        ]

    def layer(self, index: int) -> Iterator[SharedPrefix]:
        """Yield each prefix in one layer, with the rows that have it."""
        for at, (rows, prefix) in enumerate(zip(self._rows, self.prefixes, strict=True)):
            keys, values = prefix[index]
            if isinstance(rows, Tensor) and rows.device != keys.device:  # once, mostly
                self._rows[at] = rows = to_device(rows, keys.device)
            yield SharedPrefix(rows, keys, values)

    def select(self, rows: Sequence[int]) -> SharedPrefixes:
        """The prefixes of some rows, in their order; repeats are allowed."""
        return SharedPrefixes(self.prefixes, [self.prefix_of[row] for row in rows])

    def concat(self, other: SharedPrefixes) -> SharedPrefixes:
        """The prefixes of these rows and of another batch's rows below them."""
        place = {id(prefix): i for i, prefix in enumerate(self.prefixes)}
        prefixes = list(self.prefixes)
        for prefix in other.prefixes:
            if place.setdefault(id(prefix), len(prefixes)) == len(prefixes):
                prefixes.append(prefix)
        below = [None if i is None else place[id(other.prefixes[i])] for i in other.prefix_of]
        return SharedPrefixes(prefixes, [*self.prefix_of, *below])


def _row_index(rows: Sequence[int]) -> slice | Tensor:
    """Adjacent rows as a slice, which copies nothing; others as indices."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows)


class KVCache(DynamicCache):
    """A cache of `KVCacheLayer`, one per layer of the model, made when the layer first runs.

    Attributes:
        shared: The prefixes that rows share; None if they share none.
        numbers: Which of the model's layers these are, if not all keep keys and values; else None.
        told_more: What is added to the number of slots when a model asks for it, by `probe`.
    """

    #: Bytes that a row takes whatever its length.
    row_bytes = 0

    def __init__(self, numbers: Sequence[int] | None = None) -> None:
        super().__init__()
        self.layer_class_to_replicate = KVCacheLayer
        self.shared: SharedPrefixes | None = None
        self.numbers, self.told_more = numbers, 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots so far, of which a model must make nothing; none are none whatever is added."""
        slots = super().get_seq_length(layer_idx)
        return slots and slots + self.told_more

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, without the room to grow."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    def crop(self, slots: int) -> None:
        """Forget all but the first ``slots`` slots, counted without a shared prefix."""
        for layer in self.layers:
            layer.crop(slots)

    def begin_draft(self, lengths: Sequence[int]) -> None:
        """Nothing: slots of tokens that are dropped are cut off, or hidden by the mask."""

    def end_draft(self) -> None:
        """Nothing, likewise."""

    def shrink(self, order: Sequence[int]) -> None:
        """Keep some rows in place: all that are among the first stay where they are.

        Args:
            order: For each row that is left, which one it was: itself, or one behind those left.
        """
        into = torch.tensor([i for i, row in enumerate(order) if row != i], dtype=torch.long)
        last = torch.tensor([row for i, row in enumerate(order) if row != i], dtype=torch.long)
        sent = _Sent(into, last)
        for layer in self.layers:
            layer.shrink(len(order), *sent.on(layer.keys.device))
        if self.shared is not None:
            self.shared = self.shared.select(order)

    def select(self, rows: Tensor, slots: Tensor | None = None) -> KVCache:
        """A copy of some rows.

        Args:
            rows: ``[R]`` indices; repeats are allowed.
            slots: ``[R, W]`` the slots of each row that are kept, in order; None keeps all.
        """
        copy = KVCache(self.numbers)
        most = self.layers[0].keys.shape[2] if self.layers else 0
        sent = _Sent(rows, rows if slots is None else _with_room(slots, most))
        for layer in self.layers:
            mine = KVCacheLayer()
            at, place = sent.on(layer.keys.device)
            if slots is None:
                mine.hold(layer.keys[at], layer.values[at], layer.keys.shape[2])
            else:
                # One copy, with room for what comes next: the slots there hold whatever they hold.
                used = slots.shape[1]
                head = torch.arange(layer.keys.shape[1], device=at.device)
                where = (at[:, None, None], head[None, :, None], place[:, None, :])
                mine.hold(layer.keys[where], layer.values[where], used)
            copy.layers.append(mine)
        if self.shared is not None:
            copy.shared = self.shared.select(rows.tolist())
        return copy

    def fork_shared(
        self, rows: Sequence[int], slots: Sequence[Tensor], prefix_of: Sequence[int]
    ) -> KVCache:
        """A cache of new rows that have some of these as shared prefixes, and no slots yet.

        Args:
            rows: The rows that become prefixes.
            slots: Of each of them, which of its own slots count.
            prefix_of: For each new row, which of ``rows`` is its prefix.
        """
        prefixes: list[Prefix] = []
        for row, mine in zip(rows, slots, strict=True):
            prefix: Prefix = []
            sent = _Sent(mine)
            for i, layer in enumerate(self.layers):
                (at,) = sent.on(layer.keys.device)
                pair = [layer.keys[row][:, at], layer.values[row][:, at]]
                above = self.shared.prefix_of[row] if self.shared is not None else None
                if above is not None and self.shared is not None:
                    before = self.shared.prefixes[above][i]
                    pair = [torch.cat([a, b], dim=1) for a, b in zip(before, pair, strict=True)]
                prefix.append((pair[0], pair[1]))
            prefixes.append(prefix)
        new = KVCache(self.numbers)
        new.shared = SharedPrefixes(prefixes, prefix_of)
        for keys, values in prefixes[0]:
            layer = KVCacheLayer()
            shape = (len(prefix_of), keys.shape[0], 0)
            pair = [x.new_empty(*shape, x.shape[2]) for x in (keys, values)]
            layer.hold(pair[0], pair[1], 0)
            new.layers.append(layer)
        return new

    def concat(self, other: KVCache, slots: int) -> KVCache:
        """These rows and another cache's below them, all filled up with zeros to ``slots``.

        Zeros, since what lies there is multiplied by an attention weight of 0 and must be finite.
        """
        whole = KVCache(self.numbers)
        for layers in zip(self.layers, other.layers, strict=True):
            mine = KVCacheLayer()
            pair = []
            for parts in ([x.keys for x in layers], [x.values for x in layers]):
                padded = [torch.nn.functional.pad(x, (0, 0, 0, slots - x.shape[2])) for x in parts]
                pair.append(torch.cat(padded))
            mine.hold(pair[0], pair[1], slots)
            whole.layers.append(mine)
        if self.shared or other.shared:
            first, second = (
                cache.shared or SharedPrefixes([], [None] * len(cache.layers[0].keys))
                for cache in (self, other)
            )
            whole.shared = first.concat(second)
        return whole


class _Sent:
    """Indices on the CPU, sent to each device once, however many layers lie there."""

    def __init__(self, *indices: Tensor) -> None:
        self._indices, self._sent = indices, dict[torch.device, list[Tensor]]()

    def on(self, device: torch.device) -> list[Tensor]:
        """The indices, there."""
        if device not in self._sent:
            self._sent[device] = [to_device(index, device) for index in self._indices]
        return self._sent[device]


def _with_room(slots: Tensor, most: int) -> Tensor:
    """``[R, W]`` slots, and behind them as many more as a buffer has to grow, any that exist."""
    room = max(int(slots.shape[1] * _GROWTH), _LEAST_GROWTH) if most else 0
    return torch.nn.functional.pad(slots, (0, room))


def _empty_like(states: Tensor) -> Tensor:
    """``[B, heads, 0, D]``: no slots."""
    batch, heads, _, size = states.shape
    return states.new_empty(batch, heads, 0, size)


def shared_prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    trimix_shared: KVCache | None = None,
    trimix_static: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it.

    Args:
        module: The attention layer.
        query: ``[B, heads, n, D]``, or ``[1, heads, B * n, D]`` (see `one_row`).
        key: ``[B, key heads, S, D]`` of each row its own, without its shared prefix.
        value: Likewise; its D may be another.
        attention_mask: ``[B, 1, n, P + S]``, additive; the first P columns are the prefixes'.
        scaling: Of the scores; None is 1 / sqrt(D).
        softcap: What scores come close to and never reach; None is no such bound.
        s_aux: ``[heads]`` scores of one more key of each head, whose value is 0; None is none.
        trimix_shared: The cache, if rows share prefixes.
        trimix_static: The `static_cache.StaticCache` of a captured step, which attends by itself.
        **kwargs: What follows from the mask, or changes nothing.

    Returns:
        ``[B, n, heads, D]`` (or ``[1, B * n, heads, D]``), and None in place of the weights.

    Raises:
        TypeError: The layer asks for something else.
    """
    asked = {name for name, given in kwargs.items() if given is not None and given is not False}
    unknown = asked - _IMPLIED
    if unknown or kwargs.get("dropout"):
        raise TypeError(f"its attention asks for {', '.join(sorted(unknown or {'dropout'}))}")
    scores = Scores(query.shape[3] ** -0.5 if scaling is None else scaling, softcap, s_aux)
    if attention_mask is None or attention_mask.dtype == torch.bool:
        if not scores.plain or trimix_shared or trimix_static:
            raise TypeError("its attention makes a mask of its own")
        states = (query, key, value, attention_mask)
        return sdpa_attention_forward(module, *states, scaling=scaling, **kwargs)
    if one_row := len(query) < len(attention_mask):
        query = query[0].unflatten(1, (len(attention_mask), -1)).transpose(0, 1)
    states = (query, key, value, attention_mask)
    if trimix_static is not None:
        layer = trimix_static.layers[layer_of(trimix_static, module.layer_idx, key)]
        prefixes = _expanded(module, [x.transpose(0, 1) for x in layer.prefixes], key)
        out = layer.attend(*states, scores, prefixes)
    else:
        out = _attend(module, *states, scores, trimix_shared)
    return out.flatten(0, 1)[None] if one_row else out, None


class Scores(NamedTuple):
    """What becomes of the products of queries and keys.

    Attributes:
        scale: What they are multiplied by.
        softcap: What they come close to and never reach; None is no such bound.
        sinks: ``[heads]`` scores of one more key of each head, whose value is 0; None is none.
    """

    scale: float
    softcap: float | None
    sinks: Tensor | None

    @property
    def plain(self) -> bool:
        """Whether ``sdpa`` can do it."""
        return self.softcap is None and self.sinks is None

    def weights(self, products: Tensor, mask: Tensor, sinks_shape: tuple[int, ...]) -> Tensor:
        """Attention weights.

        Args:
            products: ``[*, heads / G, n, S]`` fp32; overwritten.
            mask: Additive, of a shape that fits.
            sinks_shape: A shape in which sinks, heads of a group together, fit as well.
        """
        scale = self.scale
        if self.softcap is not None:
            products.mul_(scale / self.softcap).tanh_()
            scale = self.softcap
        scores = torch.add(mask, products, alpha=scale, out=products)
        weights = scores.softmax(dim=-1)
        if self.sinks is not None:
            total = scores.logsumexp(dim=-1, keepdim=True)
            weights.mul_(total.sub_(self.sinks.float().view(sinks_shape)).sigmoid_())
        return weights


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scores: Scores,
    cache: KVCache | None,
) -> Tensor:
    """`shared_prefix_attention` where rows are rows and no step is captured."""
    batch, heads, n, size = query.shape
    # In fewer bits sdpa's kernels are the faster: there it is asked unless a prefix is shared.
    worth = cache is not None or query.dtype == torch.float32
    ours = not scores.plain or (n <= FEW_QUERIES and worth)
    if not ours and cache is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scores.scale)[0]
    entries = heads * mask.shape[-1]
    # Of a row: scores, weights, and these in the type of the values; or keys and values, repeated.
    columns = max(1, min(n, WORK_BYTES // (12 * entries)))
    row_bytes = 12 * columns if ours else 2 * size * query.itemsize
    step = max(1, WORK_BYTES // (row_bytes * entries))
    parts = []
    for start in range(0, batch, step):
        mine = (query, key, value, mask)
        shared = cache.shared if cache is not None else None
        if step < batch:
            at = slice(start, start + step)
            mine = query[at], key[at], value[at], mask[at]
            shared = shared.select(range(batch)[at]) if shared is not None else None
        prefixes: list[SharedPrefix] = []
        if shared is not None and cache is not None:
            for rows, *held in shared.layer(layer_of(cache, module.layer_idx, key)):
                pair = _expanded(module, [x[None] for x in held], key)
                prefixes.append(SharedPrefix(rows, pair[0][0], pair[1][0]))
        if not ours:
            whole = _with_prefixes(*mine, prefixes)
            parts.append(sdpa_attention_forward(module, *whole, scaling=scores.scale)[0])
            continue
        asked, keys, values, masks = mine
        some = [
            _attend_few(x, keys, values, seen, scores, prefixes)
            for x, seen in zip(asked.split(columns, 2), masks.split(columns, 2), strict=True)
        ]
        parts.append(some[0] if len(some) == 1 else torch.cat(some, dim=1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _expanded(module: Any, pair: Sequence[Tensor], key: Tensor) -> Sequence[Tensor]:
    """Cached states ``[B, heads, P, D]`` as keys and values.

    Some layers cache what keys and values are computed from, and have a method that does it.

    Args:
        module: The layer.
        pair: The states.
        key: Keys of the layer.
    """
    held = pair[0].shape
    if not held[2] or (held[1], held[3]) == (key.shape[1], key.shape[3]):
        return pair
    expanded: Sequence[Tensor] = module.expand_kv(*pair)
    return expanded


def layer_of(cache: DynamicCache, index: int, key: Tensor) -> int:
    """The layer of a cache whose keys these are: some models' last layers use those of others.

    Args:
        cache: Of the model.
        index: Of the layer that attends.
        key: ``[B, key heads, S, D]`` its keys.
    """
    numbers = getattr(cache, "numbers", None) or range(len(cache.layers))
    if index in numbers:
        return int(numbers.index(index))
    address = key.data_ptr()
    return next(i for i, one in enumerate(cache.layers) if one.keys.data_ptr() == address)


def _attend_few(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scores: Scores,
    prefixes: list[SharedPrefix],
) -> Tensor:
    """Attention of few queries: their scores are all in memory at once.

    Returns:
        ``[B, n, heads, D]``
    """
    batch, heads, n, size = query.shape
    groups, own = key.shape[1], key.shape[2]
    width = mask.shape[-1] - own
    asked = query.reshape(batch, groups, -1, size)  # [B, G, heads / G * n, D]
    products = asked.new_zeros(*asked.shape[:3], width + own, dtype=torch.float32)
    products[..., width:] = exact_product(asked, key.transpose(2, 3))
    for rows, keys, _ in prefixes:
        some = asked[rows]  # [R, G, m, D]
        flat = some.transpose(0, 1).flatten(1, 2)  # [G, R * m, D]
        found = exact_product(flat, keys.transpose(1, 2)).unflatten(1, (-1, some.shape[2]))
        products[rows, :, :, : keys.shape[1]] = found.transpose(0, 1)
    products = products.view(batch, groups, -1, n, width + own)
    weights = scores.weights(products, mask[:, :, None], (groups, -1, 1, 1)).flatten(2, 3)
    if fewer := value.dtype != torch.float32:  # rounded with 1 as the highest, as kernels do
        highest = weights.amax(dim=-1, keepdim=True)
        weights = weights.div_(highest).to(value.dtype)
    out = exact_product(weights[..., width:], value)  # [B, G, m, D]
    for rows, keys, values in prefixes:
        some = weights[rows, :, :, : keys.shape[1]]  # [R, G, m, P]
        flat = some.transpose(0, 1).flatten(1, 2)  # [G, R * m, P]
        found = exact_product(flat, values).unflatten(1, (-1, some.shape[2]))
        out[rows] += found.transpose(0, 1)
    if fewer:
        out = out.mul_(highest).to(query.dtype)
    out = out.reshape(batch, heads, n, -1)
    return out.transpose(1, 2).contiguous()


def exact_product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """The product of two batches of matrices of one type, summed in fp32 and given so.

    Where operands are in fewer bits, only CUDA has a kernel that does not round what it gives.

    Args:
        a: ``[*, n, k]``
        b: ``[*, k, m]``
        out: ``[*, n, m]`` fp32 with one leading dimension, where it is to go; None makes it.
    """
    if a.dtype != torch.float32 and hasattr(torch.ops.aten.bmm, "dtype") and a.is_cuda:
        flat = (a.flatten(0, -3), b.flatten(0, -3))
        whole = torch.bmm(*flat, out_dtype=torch.float32, out=out)
        return whole if out is not None else whole.unflatten(0, a.shape[:-2])
    return a.float() @ b.float() if out is None else torch.bmm(a.float(), b.float(), out=out)


def _with_prefixes(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, prefixes: list[SharedPrefix]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``sdpa`` takes: the shared prefixes copied in front of their rows' keys and values."""
    width, pair = mask.shape[-1] - key.shape[2], []
    theirs = [p.keys for p in prefixes], [p.values for p in prefixes]
    for own, shared in zip((key, value), theirs, strict=True):
        batch, heads, count, size = own.shape
        whole = own.new_zeros(batch, heads, width + count, size)
        whole[:, :, width:] = own
        for prefix, states in zip(prefixes, shared, strict=True):
            whole[prefix.rows, :, : states.shape[1]] = states
        pair.append(whole)
    return query, pair[0], pair[1], mask


def install_attention(model: Any) -> bool:
    """Have a model attend with `shared_prefix_attention`.

    Returns:
        Whether it can be told to; else it is as it was.
    """
    config = model.config.get_text_config()
    before: str = config._attn_implementation
    able = before == "sdpa" or (before == "eager" and model._supports_attention_backend)
    if not able:
        return False
    AttentionInterface.register(ATTENTION_NAME, shared_prefix_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
    model.set_attn_implementation(ATTENTION_NAME)
    return bool(config._attn_implementation == ATTENTION_NAME)


def uninstall_attention(model: Any) -> None:
    """Have a model attend again as before `install_attention`, if that was asked for."""
    if model.config.get_text_config()._attn_implementation == ATTENTION_NAME:
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
