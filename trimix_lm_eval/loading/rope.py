"""Rotary embeddings whose factors depend on the length of a text, read from and set in a config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def rope_kinds(config: Any) -> dict[str, int]:
    """Kinds of rotary embedding that change with the length of a text, and the length where.

    Args:
        config: Of a model, as transformers reads it.

    Returns:
        Of ``dynamic`` and ``longrope`` those that the model has: tokens up to which it is the same.
    """
    text, lengths = config.get_text_config(), dict[str, int]()
    for kind in _parameters(text):
        name = kind.get("rope_type", kind.get("type"))
        if name in ("dynamic", "longrope"):
            original = kind.get("original_max_position_embeddings")
            original = original or getattr(text, "original_max_position_embeddings", None)
            length = int(original or text.max_position_embeddings)
            lengths[name] = min(length, lengths.get(name, length))
    return lengths


def set_long_factors(config: Any) -> None:
    """Have every text turned by the factors for long ones, whatever its length."""
    for kind in _parameters(config.get_text_config()):
        if "long_factor" in kind:
            kind["short_factor"] = list(kind["long_factor"])


def _parameters(text: Any) -> Iterator[dict[str, Any]]:
    """Parameters of rotary embeddings: one set, or one for each kind of layer."""
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    yield rope
    yield from (value for value in rope.values() if isinstance(value, dict))
