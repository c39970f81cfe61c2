"""Prompts through all sources, once: for the policy's choice and for what comes after.

A prompt runs in chunks, all sources in step; while it does, its reader sees each token's
prediction, so that a selection costs no forward pass of its own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from operator import or_
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from trimix_lm_eval.engine.fuser import Fuser
from trimix_lm_eval.engine.input_batch import Ensemble, InputBatch, LogitView
from trimix_lm_eval.fusion.collectors import Choice, PromptCollectors
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.utils.errors import TrimixError, always, blame, warn_once

#: Entries of the attention mask of one chunk: 64 MiB in fp32.
MASK_ENTRIES = 2**24

T = TypeVar("T")
R = TypeVar("R")


class Prompt(NamedTuple):
    """A context, and what the policies may see of it.

    Attributes:
        ids: Its tokens, at least one.
        judged: Per token (and for ``tail``, if there is one) the bits of the policies that are
            shown it (see `policies.reading`); None means that all are. The first token has no
            prediction and is never shown.
        weights: Per config a point chosen elsewhere (for a whole task), or None, which lets its
            policy choose; None for all of them lets every policy choose.
        tail: A token after the last that is judged, but not fed (the end of a rolling window).
    """

    ids: tuple[int, ...]
    judged: tuple[int, ...] | None = None
    weights: tuple[Weights | None, ...] | None = None
    tail: int | None = None

    def given(self, config: int) -> Weights | None:
        """The point chosen elsewhere for a fusion config."""
        return self.weights[config] if self.weights else None


def halving(
    ensemble: Ensemble,
    items: Sequence[T],
    most: int,
    work: Callable[[Sequence[T], int], R],
    evict: Callable[[], bool] = bool,
) -> Iterator[R]:
    """Work through items in batches; when memory runs out, halve the batch and go on.

    Args:
        ensemble: Remembers the batch size that fits.
        items: What to do, in order.
        most: Items per batch.
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
        size = min(most, ensemble.most_rows)
        try:
            result = work(items[start : start + size], size)
        except OUT_OF_MEMORY as error:
            give_way(ensemble, size, error, evict)
        else:
            yield result
            start += size
            continue
        free()


#: What running out of memory raises.
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


def give_way(
    ensemble: Ensemble, size: int, error: BaseException, evict: Callable[[], bool]
) -> None:
    """Do with less, for the rest of the run, now that memory has run out.

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


def free() -> None:
    """Give back the memory of what failed: after the except block, whose traceback holds it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def feed(
    rows: InputBatch, ids: Tensor, valid: Tensor, wanted: Tensor
) -> Iterator[tuple[int, Tensor, list[Tensor]]]:
    """Run tokens through all sources, a chunk of columns at a time.

    Args:
        rows: B sequences in flight.
        ids: ``[B, T]`` tokens, on the CPU.
        valid: ``[B, T]`` False for padding.
        wanted: ``[B, T]`` True where the hidden state is asked for.

    Yields:
        (row, ``[k]`` its wanted columns in this chunk, one ``[k, H]`` tensor per source), chunk by
        chunk, so in order for each row; nothing for a chunk without wanted columns.
    """
    start = 0
    while start < ids.shape[1]:
        columns = slice(start, min(start + _columns(rows), ids.shape[1]))
        hidden = rows.extend(ids[:, columns], valid[:, columns], wanted[:, columns])
        at = 0
        for row in range(ids.shape[0]):
            slots = wanted[row, columns].nonzero().squeeze(1) + start
            if len(slots):
                yield row, slots, [h[at : at + len(slots)] for h in hidden]
                at += len(slots)
        start = columns.stop


def _columns(rows: InputBatch) -> int:
    """Columns of the next chunk: few enough that neither tokens nor masks grow with the prompt."""
    count, slots = rows.layout.ids.shape
    most = rows.ensemble.chunk_tokens // count
    # A mask has rows * columns * (slots + columns) entries.
    room = MASK_ENTRIES / count
    fits = int(((slots * slots + 4 * room) ** 0.5 - slots) / 2)
    return max(1, min(most, fits))


def padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token lists as ``[B, T]`` ids, padded on the right, and ``[B, T]`` which of them are real."""
    longest = max(len(s) for s in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    valid = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        valid[row, : len(tokens)] = True
    return ids, valid


def prefill(
    ensemble: Ensemble,
    prompts: Sequence[Prompt],
    readers: Sequence[PromptCollectors | None],
    rows: InputBatch | None = None,
) -> tuple[InputBatch, list[Tensor]]:
    """Run prompts through all sources, showing its readers each prompt on the way.

    Args:
        ensemble: The sources.
        prompts: B prompts.
        readers: One set per prompt; None where nobody looks.
        rows: What the prompts continue, one row each; None starts them empty.

    Returns:
        The rows, ready to be continued, and one ``[B, H]`` tensor per source: the hidden states
        at each prompt's last token.
    """
    ids, valid = padded([prompt.ids for prompt in prompts])
    ends = valid.sum(dim=1) - 1
    after, shown = _predicted(prompts, readers, ids)
    wanted = shown != 0
    wanted[torch.arange(len(prompts)), ends] = True

    rows = rows or ensemble.open(len(prompts))
    last: dict[int, list[Tensor]] = {}
    for row, slots, hidden in feed(rows, ids, valid, wanted):
        if slots[-1] == ends[row]:
            last[row] = [h[-1:] for h in hidden]
        mine = readers[row]
        if mine is not None:
            bits = shown[row, slots]
            keep = bits != 0
            view = LogitView(ensemble, [h[keep.to(h.device)] for h in hidden])
            with blame(always(row)):
                mine.read(view, after[row, slots[keep]].to(ensemble.device), bits[keep])
    for row, mine in enumerate(readers):
        if mine is not None:
            with blame(always(row)):
                mine.read_next(LogitView(ensemble, last[row]))
    order = range(len(prompts))
    return rows, [torch.cat([last[r][s] for r in order]) for s in range(len(ensemble.sources))]


def _predicted(
    prompts: Sequence[Prompt], readers: Sequence[PromptCollectors | None], ids: Tensor
) -> tuple[Tensor, Tensor]:
    """The token that each position predicts, and the bits of the readers that are shown it.

    Args:
        prompts: B prompts.
        readers: One set per prompt; None where nobody looks.
        ids: ``[B, T]`` their tokens, padded.

    Returns:
        ``[B, T]`` tokens and ``[B, T]`` bits.
    """
    after = torch.zeros_like(ids)
    after[:, :-1] = ids[:, 1:]
    shown = torch.zeros_like(ids)
    for row, (prompt, mine) in enumerate(zip(prompts, readers, strict=True)):
        if mine is None:
            continue
        length = len(prompt.ids) + (prompt.tail is not None)
        if prompt.tail is not None:
            after[row, length - 2] = prompt.tail
        everyone = sum(mine.readers)
        judged = prompt.judged[1:length] if prompt.judged else (everyone,) * (length - 1)
        shown[row, : length - 1] = torch.tensor(judged, dtype=torch.long) & everyone
    return after, shown


def cut(prompt: Prompt, length: int) -> Prompt:
    """The last ``length`` tokens of a prompt; whoever is shown none of them is shown all."""
    if len(prompt.ids) <= length:
        return prompt
    judged = prompt.judged[-length:] if prompt.judged else None
    if judged is not None and prompt.judged is not None:
        left = union(judged[1:])
        blind = union(prompt.judged[1:]) & ~left
        judged = tuple(bits | blind for bits in judged) if left else None
    return prompt._replace(ids=prompt.ids[-length:], judged=judged)


def union(bits: Iterable[int]) -> int:
    """All bits of any of them."""
    return reduce(or_, bits, 0)


def readers_for(fuser: Fuser, prompts: Sequence[Prompt]) -> list[PromptCollectors | None]:
    """Fresh readers for every prompt, of the policies that still need a choice."""
    names = fuser.ensemble.names
    found: list[PromptCollectors | None] = []
    for prompt in prompts:
        readers = {}
        for i, config in enumerate(fuser.configs):
            bit = fuser.bits.get(config.policy)
            if bit and prompt.given(i) is None and fuser.choosers[i] == i:
                reader = config.policy.reader(names)
                if reader is not None:
                    readers[bit] = reader
        found.append(PromptCollectors(readers) if readers else None)
    return found


def choices_of(
    fuser: Fuser, prompt: Prompt, readers: PromptCollectors | None
) -> tuple[Choice | None, ...]:
    """What each config's policy chooses for a prompt that was read; None: weights per token."""
    chosen: list[Choice | None] = []
    for i, config in enumerate(fuser.configs):
        given = prompt.given(i)
        if config.policy.scope == "token":
            chosen.append(None)
        elif given is not None:
            chosen.append(Choice(given))
        elif fuser.choosers[i] < i:
            chosen.append(chosen[fuser.choosers[i]])
        else:
            reader = readers.readers.get(fuser.bits.get(config.policy, 0)) if readers else None
            chosen.append(config.policy.choose([reader] if reader else []))
    return tuple(chosen)
