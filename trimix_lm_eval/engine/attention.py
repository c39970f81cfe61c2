"""Attention of few queries to many keys, of which rows may have the first ones in common.

Written for decoding, where each row asks for a handful of tokens. transformers' ``sdpa`` repeats
keys and values for every head of a group first, and every row reads a beginning of its own, even
if all rows have the same. Here the heads of a group ask together, and so do the rows that have a
beginning in common ("Hydragen", Juravsky et al. 2024): one matrix product for all of them.

It is offered to transformers as an attention implementation. Longer runs of queries, where the
arithmetic is what takes time, are passed on to ``sdpa``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

#: The name under which transformers knows `attend`.
NAME = "trimix"
#: So many queries per row are few.
FEW = 16


class SharedPrefix(NamedTuple):
    """Keys and values that some rows begin with, in one layer.

    Attributes:
        rows: Which rows: a slice, or ``[R]`` indices.
        keys: ``[heads, P, D]``
        values: ``[heads, P, D]``
    """

    rows: slice | Tensor
    keys: Tensor
    values: Tensor


class SharedPrefixLayers(Protocol):
    """What the rows of a batch begin with, by layer."""

    def layer(self, index: int) -> Iterator[SharedPrefix]:
        """Each beginning, with the rows that have it."""
        ...


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    trimix_common: SharedPrefixLayers | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it.

    Args:
        module: The attention layer.
        query: ``[B, heads, n, D]``
        key: ``[B, key heads, S, D]`` of each row its own, without what it has in common.
        value: Likewise.
        attention_mask: ``[B, 1, n, P + S]``, additive; the first P columns are of what is common.
        scaling: Of the scores; None is 1 / sqrt(D).
        trimix_common: What rows begin with; None if they have nothing in common.
        **kwargs: What ``sdpa`` takes.

    Returns:
        ``[B, n, heads, D]``, and None in place of the weights.
    """
    few = query.shape[2] <= FEW
    plain = kwargs.get("softcap") is None and kwargs.get("position_bias") is None
    # In fewer bits sdpa's kernels round less: there it is asked unless something is in common.
    worth = trimix_common is not None or query.dtype == torch.float32
    if attention_mask is not None and few and plain and worth:
        begun = list(trimix_common.layer(module.layer_idx)) if trimix_common else []
        scale = query.shape[3] ** -0.5 if scaling is None else scaling
        return _few(query * scale, key, value, attention_mask, begun), None
    if trimix_common is not None and attention_mask is not None:
        begun = list(trimix_common.layer(module.layer_idx))
        width = attention_mask.shape[-1] - key.shape[2]
        key = _whole(key, width, [(b.rows, b.keys) for b in begun])
        value = _whole(value, width, [(b.rows, b.values) for b in begun])
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )


def _few(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, begun: list[SharedPrefix]
) -> Tensor:
    """Few queries, scaled: their scores are all there at once.

    Returns:
        ``[B, n, heads, D]``
    """
    batch, heads, n, size = query.shape
    groups, own = key.shape[1], key.shape[2]
    width = mask.shape[-1] - own
    asked = query.reshape(batch, groups, -1, size)  # [B, G, heads / G * n, D]
    scores = asked.new_zeros(*asked.shape[:3], width + own)
    scores[..., width:] = asked @ key.transpose(2, 3)
    for rows, keys, _ in begun:
        some = asked[rows]  # [R, G, m, D]
        flat = some.transpose(0, 1).flatten(1, 2)  # [G, R * m, D]
        found = (flat @ keys.transpose(1, 2)).unflatten(1, (-1, some.shape[2])).transpose(0, 1)
        scores[rows, :, :, : keys.shape[1]] = found
    scores = scores.view(batch, groups, -1, n, width + own) + mask[:, :, None]
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype).flatten(2, 3)
    out = weights[..., width:] @ value  # [B, G, m, D]
    for rows, keys, values in begun:
        some = weights[rows, :, :, : keys.shape[1]]  # [R, G, m, P]
        flat = some.transpose(0, 1).flatten(1, 2)  # [G, R * m, P]
        out[rows] += (flat @ values).unflatten(1, (-1, some.shape[2])).transpose(0, 1)
    return out.reshape(batch, heads, n, size).transpose(1, 2).contiguous()


def _whole(own: Tensor, width: int, begun: list[tuple[slice | Tensor, Tensor]]) -> Tensor:
    """Keys or values ``[B, heads, width + S, D]``, with what is common copied to every row."""
    batch, heads, count, size = own.shape
    whole = own.new_zeros(batch, heads, width + count, size)
    whole[:, :, width:] = own
    for rows, common in begun:
        whole[rows, :, : common.shape[1]] = common
    return whole


def install(model: Any) -> bool:
    """Let a model attend in this way, if it lets itself be told; returns whether it does."""
    config = model.config.get_text_config()
    if config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
    return bool(config._attn_implementation == NAME)


def uninstall(model: Any) -> None:
    """Let a model attend as it did before."""
    model.set_attn_implementation("sdpa")
