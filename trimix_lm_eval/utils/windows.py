"""How a text longer than the context is cut: windows, each token predicted exactly once.

The windows are those that lm-eval's ``hf`` model scores (`get_rolling_token_windows` with a context
of one token, made disjoint), so that the two score the same tokens after the same contexts
(invariant 1). Token ids in, token ids out: nothing here needs lm-eval.
"""

from __future__ import annotations

from collections.abc import Sequence

#: The tokens of the context and the tokens to be predicted after it.
Window = tuple[tuple[int, ...], tuple[int, ...]]


def rolling_windows(tokens: Sequence[int], prefix_token: int, max_length: int) -> list[Window]:
    """Cut a whole text, in token ids, into windows; none where it has no tokens.

    The first window predicts as many tokens as fit after ``prefix_token``. Each further one
    predicts the next ``max_length`` tokens after the token before them; the last one, which has
    fewer tokens left, takes as much context as fits.
    """
    tokens = tuple(tokens)
    windows: list[Window] = [((prefix_token,), tokens[:max_length])] if tokens else []
    for start in range(max_length, len(tokens), max_length):
        end = min(start + max_length, len(tokens))
        windows.append((tokens[end - max_length - 1 : start], tokens[start:end]))
    return windows


def continuation_windows(
    context: Sequence[int], continuation: Sequence[int], max_length: int
) -> list[Window]:
    """Cut a continuation after its context, which has a token at least, into windows.

    A single one, if the continuation fits into ``max_length``, has as much of the context as fits,
    cut from the left; several are the rolling windows of both together, without those of the
    context alone.
    """
    if len(continuation) <= max_length:
        cut = max(0, len(context) + len(continuation) - 1 - max_length)
        return [(tuple(context[cut:]), tuple(continuation))]
    windows: list[Window] = []
    left = len(continuation)
    for before, part in reversed(
        rolling_windows([*context[1:], *continuation], context[0], max_length)
    ):
        own = min(left, len(part))
        if own:
            split = len(part) - own
            windows.insert(0, (before + part[:split], part[split:]))
        left -= own
    return windows
