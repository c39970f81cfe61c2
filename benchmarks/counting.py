"""How many tokens TriMix ran through its models, and how few would have done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile
from typing import Any

from trimix_lm_eval import TriMix


class Count:
    """Tokens run so far, all sources together, padding included."""

    tokens = 0


@contextlib.contextmanager
def counting(model: TriMix) -> Iterator[Count]:
    """Count the tokens that go through the sources meanwhile."""
    count = Count()

    def see(_: Any, __: Any, arguments: dict[str, Any]) -> None:
        count.tokens += arguments["input_ids"].numel()

    bodies = [source.model.base_model for source in model.fuser.ensemble.sources]
    hooks = [body.register_forward_pre_hook(see, with_kwargs=True) for body in bodies]
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()


def distinct_tokens(model: TriMix, pairs: Sequence[tuple[str, str]]) -> int:
    """Tokens of one source that differ in themselves or in what stands before them.

    Each must be run at least once to score these (context, option) pairs; the last token of an
    option predicts nothing that is asked for.
    """
    rows = set()
    for context, option in pairs:
        prompt, target = model.codec.pair(context, option)
        rows.add(prompt.ids + target[:-1])
    ordered = sorted(rows)
    return sum(map(len, ordered)) - sum(_common(a, b) for a, b in pairwise(ordered))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
