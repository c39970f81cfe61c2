"""What happens when memory runs out: smaller batches, then smaller chunks, then an error.

First of all, what is kept only because it may be asked for again is given up (see `kept`). Before
chunks get so small that a GPU idles between them, what prompts begin with is no longer held for
those to come. None of it changes a result (invariants 2 and 4).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from trimix_lm_eval.engine.model_runner import Ensemble
from trimix_lm_eval.utils.errors import TrimixError, first_line, is_out_of_memory, warn_once

#: Tokens of a chunk that a GPU is busy with; and of the smallest one before a request fails.
_BUSY_CHUNK, _LEAST_CHUNK = 256, 16

T = TypeVar("T")
R = TypeVar("R")


def find_executable_batch_size(
    ensemble: Ensemble,
    items: Sequence[T],
    batch_size: int,
    work: Callable[[Sequence[T], int], R],
    evict: Callable[[], bool] = bool,
) -> Iterator[R]:
    """Work through items in batches; when memory runs out, halve the batch and go on.

    Named after the function of accelerate that does the same for a whole training run.

    Args:
        ensemble: Remembers the batch size, and the size of chunks, that fit.
        items: What to do, in order.
        batch_size: Items per batch, at most.
        work: Does one batch, from its beginning; also told the batch size in force.
        evict: Frees what is held for later, before a batch of one is given up; returns whether
            there was any.

    Yields:
        What ``work`` returns, batch by batch.

    Raises:
        TrimixError: Memory runs out with a batch of one.
    """
    start = 0
    while start < len(items):
        size = min(batch_size, ensemble.most_rows)
        try:
            result = work(items[start : start + size], size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            halve_batch_size(ensemble, size, error, evict)
        else:
            yield result
            start += size
            continue
        release_memory()


def halve_batch_size(
    ensemble: Ensemble, size: int, error: BaseException, evict: Callable[[], bool]
) -> None:
    """Halve the batch size for the rest of the run; where it is one, make room otherwise.

    Neither, if there are prompts that are kept to be used again: then those are given up.

    Args:
        ensemble: Remembers the batch size, and the size of chunks, that fit.
        size: The batch size with which memory ran out.
        error: What was raised.
        evict: Frees what is held for later; returns whether there was any.

    Raises:
        TrimixError: There is nothing to evict, and nothing to halve.
    """
    if ensemble.kept:
        for node in ensemble.kept:
            node.evict()
        ensemble.kept.clear()
        return
    if size > 1:
        ensemble.most_rows = size // 2
        warn_once(f"Out of memory: going on with batches of {ensemble.most_rows}.")
        return
    if _halve_chunks(ensemble, _BUSY_CHUNK) or evict() or _halve_chunks(ensemble, _LEAST_CHUNK):
        return
    raise TrimixError(
        f"Out of memory with a batch of one: {first_line(error)}",
        "lower max_length, load a source in fewer bits (large_quantization=int8|nf4), "
        "or put one elsewhere (small_device=cuda:1)",
    ) from error


def _halve_chunks(ensemble: Ensemble, least: int) -> bool:
    """Halve the chunks that prompts run in, down to ``least`` tokens; returns whether it could."""
    if ensemble.chunk_tokens <= least:
        return False
    ensemble.chunk_tokens = max(least, ensemble.chunk_tokens // 2)
    ensemble.logit_positions = max(1, ensemble.logit_positions // 2)
    warn_once(f"Out of memory: going on with {ensemble.chunk_tokens} tokens at a time.")
    return True


def release_memory() -> None:
    """Give back the memory of what failed: after the except block, whose traceback holds it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
