"""What TriMix ran through its models: tokens, the fewest that would have done, and seconds."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
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


#: A forward pass over more columns is one of a prompt.
_STEP = 16


class Clock:
    """Seconds inside the models so far, by source; and of decoding, passes.

    Attributes:
        seconds: In all.
        decoding: Of them, those of passes of decoding, heads included.
        passes: Passes of decoding.
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.decoding: Counter[str] = Counter()
        self.passes: Counter[str] = Counter()


@contextlib.contextmanager
def clocking(model: TriMix) -> Iterator[Clock]:
    """Time the forwards and the heads of the sources meanwhile.

    On a GPU, where the host runs ahead of them, the seconds are those that the GPU took for whole
    rounds, under the name ``rounds``.
    """
    clock = Clock()
    with contextlib.ExitStack() as stack:
        if model.fuser.ensemble.device.type == "cuda":
            stack.enter_context(_clocked_rounds(model, clock))
        else:
            for source in model.fuser.ensemble.sources:
                for part in (source.model.base_model, source.model.get_output_embeddings()):
                    stack.enter_context(_clocked(part, source.name, clock))
        yield clock


@contextlib.contextmanager
def _clocked(part: Any, name: str, clock: Clock) -> Iterator[None]:
    """Time a body or a head."""
    begun = 0.0

    def begin(*_: Any) -> None:
        nonlocal begun
        begun = time.perf_counter()

    def end(_: Any, given: tuple[Any, ...], how: dict[str, Any], __: Any) -> None:
        spent = time.perf_counter() - begun
        clock.seconds[name] += spent
        ids = how.get("input_ids")
        if ids is None or ids.shape[1] <= _STEP:
            clock.decoding[name] += spent
            clock.passes[name] += ids is not None

    hooks = [
        part.register_forward_pre_hook(begin),
        part.register_forward_hook(end, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _clocked_rounds(model: TriMix, clock: Clock) -> Iterator[None]:
    """Add up what rounds cost the GPU, as the choice of draft lengths learns it."""
    learn = model.speculation.learn

    def seen(k: int, rows: int, new: Sequence[Any], cost: Any) -> None:
        spent = cost.drafting + cost.verifying
        clock.seconds["rounds"] += spent
        clock.decoding["rounds"] += spent
        clock.passes["rounds"] += 1
        learn(k, rows, new, cost)

    model.speculation.learn = seen  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.speculation.learn


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
