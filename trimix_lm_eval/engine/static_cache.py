"""Keys and values at fixed addresses, for decoding steps that are captured as CUDA graphs.

A row's token at position p lies in slot p, counted from the end of the prefix that it shares with
other rows, if it does. So which slots a query sees follows from positions alone, a draft that was
rejected is overwritten by the token that took its place, and nothing ever has to be packed. A batch
has a fixed number of rows and of slots; rows that are not in use compute along, and what they hold
is of no consequence.

Shared prefixes lie one behind the other in slots that all rows have in common, each of them once.
Every row attends to all of these in one matrix product; the mask lets it see its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from trimix_lm_eval.engine.kv_cache import KVCache, Prefix
from trimix_lm_eval.engine.model_runner import ModelRunner


class StaticShape(NamedTuple):
    """How large caches are: rows, slots of each row, and slots of shared prefixes."""

    rows: int
    slots: int
    shared: int


class StaticLayer(DynamicLayer):
    """One layer.

    Args:
        cache: Which says where a step's tokens go.
        like: Keys and values of the layer, ``[*, heads, *, D]`` each; D may differ.
        shape: How large it is.

    Attributes:
        held: Keys and values, ``[B, S, heads, D]`` each.
        prefixes: Those of shared prefixes, ``[P, heads, D]`` each.
    """

    def __init__(self, cache: StaticCache, like: Sequence[Tensor], shape: StaticShape) -> None:
        super().__init__()
        self._cache = cache
        # Zeros: what is not seen is multiplied by 0, and must be a number.
        self.held = [x.new_zeros(shape.rows, shape.slots, x.shape[1], x.shape[3]) for x in like]
        self.prefixes = [x.new_zeros(shape.shared, x.shape[1], x.shape[3]) for x in like]
        self.keys, self.values = (x.transpose(1, 2) for x in self.held)
        self.dtype, self.device, self.is_initialized = like[0].dtype, like[0].device, True

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

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
    ) -> Tensor:
        """Attention, the heads of a group as more queries of one head.

        Args:
            query: ``[B, heads, n, D]``
            key: ``[B, G, S, D]``
            value: ``[B, G, S, D]``
            mask: ``[B, 1, heads / G * n, P + S]``, see `StepMasks`.
            scale: Of the scores.

        Returns:
            ``[B, n, heads, D]``
        """
        batch, heads, n, size = query.shape
        asked = query.reshape(batch, key.shape[1], -1, size)  # [B, G, m, D]
        if len(self.prefixes[0]):
            out = _attend_shared(asked * scale, key, value, mask, *self.prefixes)
        else:
            attend = torch.nn.functional.scaled_dot_product_attention
            out = attend(asked, key, value, attn_mask=mask, scale=scale)
        return out.reshape(batch, heads, n, -1).transpose(1, 2).contiguous()


def _attend_shared(
    asked: Tensor, key: Tensor, value: Tensor, mask: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Attention to slots of one's own and to those of all shared prefixes, in two products.

    Args:
        asked: ``[B, G, m, D]``, scaled.
        key: ``[B, G, S, D]``
        value: ``[B, G, S, D]``
        mask: ``[B, 1, m, P + S]``
        keys: ``[P, G, D]`` of the shared slots.
        values: ``[P, G, D]`` of the shared slots.

    Returns:
        ``[B, G, m, D]``
    """
    batch, width = len(asked), len(keys)
    flat = asked.transpose(0, 1).flatten(1, 2)  # [G, B * m, D]
    shared = (flat @ keys.permute(1, 2, 0)).unflatten(1, (batch, -1)).transpose(0, 1)
    scores = torch.cat([shared, asked @ key.transpose(2, 3)], dim=3) + mask  # [B, G, m, P + S]
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    flat = weights[..., :width].transpose(0, 1).flatten(1, 2)  # [G, B * m, P]
    theirs = (flat @ values.transpose(0, 1)).unflatten(1, (batch, -1)).transpose(0, 1)
    return weights[..., width:] @ value + theirs


class StaticCache(DynamicCache):
    """The cache of one source.

    Args:
        like: A cache of the same source that holds something.
        shape: How large it is.

    Attributes:
        slots: ``[B, n]`` where the tokens of the next forward pass go.
    """

    def __init__(self, like: KVCache, shape: StaticShape) -> None:
        super().__init__()
        device = like.layers[0].keys.device
        self.rows = torch.arange(shape.rows, device=device)
        self.slots = torch.zeros(shape.rows, 1, dtype=torch.long, device=device)
        self.layers = [StaticLayer(self, (x.keys, x.values), shape) for x in like.layers]

    def take_rows(self, other: KVCache, rows: list[int]) -> None:
        """Copy the rows of another cache, whose slots are packed: each to the row given for it."""
        for layer, theirs in zip(self.layers, other.layers, strict=True):
            count = min(theirs.keys.shape[2], layer.held[0].shape[1])
            for held, states in zip(layer.held, (theirs.keys, theirs.values), strict=True):
                for at, row in enumerate(rows):
                    held[row, :count] = states[at, :, :count].transpose(0, 1)

    def take_prefix(self, prefix: Prefix, start: int) -> None:
        """Copy a shared prefix to the slots from ``start`` on."""
        for layer, pair in zip(self.layers, prefix, strict=True):
            for held, states in zip(layer.prefixes, pair, strict=True):
                held[start : start + states.shape[1]] = states.transpose(0, 1)

    def take_all(self, other: StaticCache, rows: list[int]) -> None:
        """Copy some rows of another, smaller cache of this kind, and all prefixes."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            for held, source in zip(mine.held, theirs.held, strict=True):
                for row in rows:
                    held[row, : source.shape[1]] = source[row]
            for held, source in zip(mine.prefixes, theirs.prefixes, strict=True):
                held[: len(source)] = source


class Places(NamedTuple):
    """Where the tokens of a step are, on the device.

    Attributes:
        positions: ``[B, n]`` their positions.
        starts: ``[B]`` where each row's shared prefix begins among the shared slots.
        lengths: ``[B]`` how long it is; 0 where there is none.
    """

    positions: Tensor
    starts: Tensor
    lengths: Tensor


class StepMasks:
    """The masks of a decoding step for one source, made once for all its passes.

    Args:
        runner: The source.
        places: Where the step's tokens are.
        shape: How large its cache is. Multiples of 16 slots, or kernels of attention pad the mask.
    """

    def __init__(self, runner: ModelRunner, places: Places, shape: StaticShape) -> None:
        self.runner, config = runner, runner.config
        heads = getattr(config, "num_attention_heads", 1)
        repeats = heads // (getattr(config, "num_key_value_heads", None) or heads)
        #: Heads that share a key: `kv_cache` lets them ask as queries of one.
        self.repeats = repeats if runner.shares_prefixes else 1
        own = torch.arange(shape.slots, device=places.lengths.device) + places.lengths[:, None]
        shared = torch.arange(shape.shared, device=own.device) - places.starts[:, None]
        outside = (shared < 0) | (shared >= places.lengths[:, None])
        # Positions of all slots, [B, P + S]; what is of another prefix is later than everything.
        keys = torch.cat([shared.masked_fill_(outside, torch.iinfo(torch.long).max), own], dim=1)
        self.masks = {
            kind: self._additive(places.positions[:, None, :, None], keys[:, None, None], *how)
            for kind, how in runner.mask_kinds().items()
        }

    def _additive(
        self, query: Tensor, key: Tensor, window: int | None, block: int | None
    ) -> Tensor:
        """``[B, 1, n, P + S]``, 0 where seen, the dtype's minimum elsewhere."""
        hidden = key > query
        if window is not None:
            hidden = hidden | (key <= query - window)
        if block is not None:
            hidden = hidden | (key // block != query // block)
        dtype = self.runner.dtype
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return mask.masked_fill_(hidden, torch.finfo(dtype).min)

    def one(self, index: int) -> Any:
        """Of one of the step's tokens: by kind of layer, if the model wants it so."""
        return self._given(
            {
                kind: mask[:, :, index : index + 1].expand(-1, -1, self.repeats, -1)
                for kind, mask in self.masks.items()
            }
        )

    def all(self) -> Any:
        """Of all of them."""
        return self._given(
            {kind: mask.repeat(1, 1, self.repeats, 1) for kind, mask in self.masks.items()}
        )

    def _given(self, masks: dict[str, Tensor]) -> Any:
        return masks if self.runner.masks_by_type else masks[""]


def run_static(
    runner: ModelRunner, ids: Tensor, places: Places, cache: StaticCache, masks: Any
) -> Tensor:
    """Run tokens at the slots of their positions: no shape or address depends on values.

    Args:
        runner: The source.
        ids: ``[B, n]`` tokens.
        places: Where they are.
        cache: Of the source; written to.
        masks: What `StepMasks` gives for these tokens.

    Returns:
        ``[B, n, H]`` final hidden states.
    """
    cache.slots = places.positions - places.lengths[:, None]
    # Of a source with an attention of its own no prefix is shared.
    static = {"trimix_static": cache} if runner.shares_prefixes else {}
    output = runner.model.base_model(
        input_ids=ids,
        position_ids=places.positions,
        attention_mask=masks,
        use_cache=True,
        **{runner.cache_name: cache},
        **static,
    )
    states: Tensor = output.last_hidden_state
    return states
