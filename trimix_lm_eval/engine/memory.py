"""What happens when memory runs out: smaller batches, then no shared prefixes, then an error."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from trimix_lm_eval.engine.model_runner import Ensemble
from trimix_lm_eval.utils.errors import TrimixError, is_out_of_memory, warn_once

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
        ensemble: Remembers the batch size that fits.
        items: What to do, in order.
        batch_size: Items per batch, at most.
        work: Does one batch; also told the batch size in force.
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
    """Halve the batch size for the rest of the run; where it is one, evict instead.

    Args:
        ensemble: Remembers the batch size that fits.
        size: The batch size with which memory ran out.
        error: What was raised.
        evict: Frees what is held for later; returns whether there was any.

    Raises:
        TrimixError: There is nothing to evict, and nothing to halve.
    """
    if size > 1:
        ensemble.most_rows = size // 2
        warn_once(f"Out of memory: going on with batches of {ensemble.most_rows}.")
    elif not evict():
        raise TrimixError(
            f"Out of memory with a batch of one: {error}",
            "lower max_length, load a source in fewer bits (large_quantization=int8|nf4), "
            "or put one elsewhere (small_device=cuda:1)",
        ) from error


def release_memory() -> None:
    """Give back the memory of what failed: after the except block, whose traceback holds it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
