"""The layers of a model some of which keep states, as transformers' own cache makes them.

Which layers keep what is read off the cache that the model would make for itself, so that no family
is known by its name. Layers with keys and values become those of `kv_cache`; of a layer with states
a new one is filled for every pass, since models write to the tensors that they are given.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicCache,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
)

from trimix_lm_eval.engine.kv_cache import KVCache, KVCacheLayer

#: Of each layer that has states, all of them.
States = Sequence[Sequence[Tensor]]


class StateAndKeysLayer(LinearAttentionAndFullAttentionLayer):
    """A layer with states and with keys and values, the latter kept as in all other layers."""

    def __init__(self, number_of_states: int = 1) -> None:
        super().__init__(number_of_states=number_of_states)
        self.kv = KVCacheLayer()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append ``[B, heads, n, D]`` keys and values; returns all of them."""
        return self.kv.update(key_states, value_states)

    def get_seq_length(self) -> int:
        """Slots that are filled."""
        return self.kv.get_seq_length()


class CacheLayout:
    """Which layers of a model keep states, which keys and values, which neither.

    Args:
        model_cache: A cache as the model's own code makes it.
    """

    def __init__(self, model_cache: DynamicCache) -> None:
        #: Of each layer, what an empty one is made from; once the model has run, with its sizes.
        self.templates: list[Any] = list(model_cache.layers)
        self.stateful = [
            i for i, x in enumerate(self.templates) if isinstance(x, LinearAttentionCacheLayerMixin)
        ]
        self.keyed = [i for i, x in enumerate(self.templates) if isinstance(x, CacheLayerMixin)]
        #: Texts that branch off others and are run side by side; fewer once memory has run out.
        self.most_branches = sys.maxsize

    def layers(self, kv: KVCache, states: States | None) -> list[Any]:
        """The layers of a pass.

        Args:
            kv: Keys and values of the rows; empty before the first pass.
            states: ``[B, *]`` each; None before the first token.
        """
        if not kv.layers:
            kv.layers += [KVCacheLayer() for _ in self.keyed]
            kv.numbers = self.keyed
        if states is None:
            made = {i: self._empty(i) for i in self.stateful}
        else:
            pairs = zip(self.stateful, states, strict=True)
            made = {i: filled(self.templates[i], mine) for i, mine in pairs}
        return self.together(kv.layers, made)

    def _empty(self, number: int) -> Any:
        """A layer before the first token."""
        template = self.templates[number]
        kind = StateAndKeysLayer if number in self.keyed else type(template)
        return kind(template.number_of_states)

    def together(self, keyed: Sequence[Any], stateful: Mapping[int, Any]) -> list[Any]:
        """All layers that the model looks for, in their order.

        Args:
            keyed: Those with keys and values.
            stateful: Those with states, by their numbers.
        """
        keys = dict(zip(self.keyed, keyed, strict=True))
        for number in keys.keys() & stateful.keys():
            stateful[number].kv = keys[number]
        made = {**keys, **stateful}
        return [made.get(i, own) for i, own in enumerate(self.templates)]

    def states(self, layers: Sequence[Any]) -> list[list[Tensor]]:
        """The states that a pass has left in its layers, ``[B, *]`` each."""
        for i in self.stateful:  # their sizes, without what they hold
            left = filled(layers[i], [x.new_empty(0) for x in states_of(layers[i])])
            if i in self.keyed:
                left.kv = KVCacheLayer()
            self.templates[i] = left
        return [list(states_of(layers[i])) for i in self.stateful]


def states_of(layer: Any) -> Iterator[Tensor]:
    """The states of a layer, those that it has."""
    for kind in (layer.conv_states, layer.recurrent_states):
        yield from (state for state in kind.values() if state is not None)


def filled(template: Any, states: Sequence[Tensor]) -> Any:
    """A layer like another that has run, with these states instead."""
    layer, left = copy.copy(template), iter(states)
    for name in ("conv_states", "recurrent_states"):
        had = getattr(template, name)
        setattr(layer, name, {i: None if x is None else next(left) for i, x in had.items()})
    layer.has_previous_state = dict.fromkeys(template.has_previous_state, True)
    return layer
