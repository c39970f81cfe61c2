"""What a model keeps of the texts that it reads: so much per token, and so much per text.

It is read off the cache that the model makes of a few tokens, without storage: keys and values of
some layers or of all, compressed or not, and states, whose size is that of no token's. Where a
model cannot be run so, as in older versions of transformers, its config is asked for the heads of
its attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: The dtype in which models are built to be looked at: grouped experts take no other here.
BUILT_IN = torch.bfloat16
#: Tokens that are run; of a window that is shorter still, what a token takes is the same.
_TOKENS = 4


class Kept(NamedTuple):
    """What is kept of a text.

    Attributes:
        per_token: Bytes of keys and values, sliding windows not deducted.
        per_row: Bytes of states, however long the text is.
    """

    per_token: int
    per_row: int


def kept_by(model: Any, size: int) -> Kept | None:
    """What a model keeps; None if that cannot be told.

    Args:
        model: On PyTorch's ``meta`` device, in the dtype `BUILT_IN`.
        size: Bytes of a number in the dtype in which it will run.
    """
    layers = _layers_of(model)
    if layers is None:
        numbers = _by_config(model.config.get_text_config())
        return None if numbers is None else Kept(size * numbers, 0)
    per_token = sum(
        _bytes(x, size) // x.shape[-2] for layer in layers for x in _keys_and_values(layer)
    )
    return Kept(per_token, sum(_bytes(x, size) for layer in layers for x in _states(layer)))


def _layers_of(model: Any) -> list[Any] | None:
    """The layers of the cache that a model makes of a few tokens; None if there is none."""
    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    try:
        model.set_attn_implementation("eager")  # any runs without storage; kernels may not
        with torch.no_grad():
            output = model(input_ids=ids, use_cache=True)
        caches = [x for x in output.values() if isinstance(getattr(x, "layers", None), list)]
    except Exception:  # it looks into its inputs, where there are no numbers
        return None
    return caches[0].layers if caches else None


def _keys_and_values(layer: Any) -> Iterator[Tensor]:
    """Of a layer that has any, ``[1, heads, T, D]``."""
    for name in ("keys", "values"):
        held = getattr(layer, name, None)
        if held is not None and held.numel():
            yield held


def _states(layer: Any) -> Iterator[Tensor]:
    """Of a layer that has any, ``[1, *]``."""
    for name in ("conv_states", "recurrent_states"):
        yield from (x for x in (getattr(layer, name, None) or {}).values() if x is not None)


def _bytes(held: Tensor, size: int) -> int:
    """What a tensor takes once the model runs: some states are fp32 whatever the model is."""
    return held.numel() * (size if held.dtype == BUILT_IN else held.itemsize)


def _by_config(text: Any) -> int | None:
    """Numbers in a token's keys and values, if every layer keeps them.

    Layers may differ in their heads (``per_layer_config``), and the last may use the keys and
    values of those before (``num_kv_shared_layers``).
    """
    count = getattr(text, "num_hidden_layers", None)
    if not isinstance(count, int):
        return None
    layers = list(getattr(text, "per_layer_config", None) or [text] * count)
    kept = layers[: count - (getattr(text, "num_kv_shared_layers", None) or 0)]
    sizes = [_of_layer(layer) for layer in kept]
    numbers = [one for one in sizes if one is not None]
    return sum(numbers) if len(numbers) == len(kept) else None


def _of_layer(layer: Any) -> int | None:
    """Numbers in a token's keys and values in one layer; None if its config does not say."""
    heads = getattr(layer, "num_attention_heads", None)
    kv_heads = getattr(layer, "num_key_value_heads", None) or heads
    width = getattr(layer, "hidden_size", None)
    head_dim = getattr(layer, "head_dim", None)
    if head_dim is None and isinstance(width, int) and isinstance(heads, int):
        head_dim = width // heads
    # Keys made of a part with positions and one without, beside values of another size.
    names = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    parts = [size for name in names if isinstance(size := getattr(layer, name, None), int)]
    if len(parts) < len(names):
        parts = 2 * [head_dim] if isinstance(head_dim, int) else []
    if not (isinstance(kv_heads, int) and parts):
        return None  # another kind of layer, or another number of heads in each
    return kv_heads * sum(parts)
