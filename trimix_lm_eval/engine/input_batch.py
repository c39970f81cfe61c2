"""The sources in step: one layout, one cache each, logits on demand.

Logits exist for one chunk of positions at a time, of all sources together (invariant 4).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trimix_lm_eval.engine.kv_cache import stacked
from trimix_lm_eval.engine.model_runner import ModelRunner
from trimix_lm_eval.engine.token_table import TokenTable, joined
from trimix_lm_eval.utils.errors import NotFinite, TrimixError

#: Bytes that the fp32 logits of one chunk may take, over all sources and temporaries.
LOGIT_BYTES = 256 * 2**20
#: The logit of an id that stands for no token.
_NEVER = -1e4
#: Tokens (rows times columns) of one forward pass of a long prompt.
CHUNK_TOKENS = 2048


class LogitView:
    """Logits on demand: N positions whose hidden states are kept, one tensor per source.

    Args:
        ensemble: Whose heads turn them into logits.
        hidden: One ``[N, H]`` tensor per source.
        ready: ``[N, V]`` logits that are there already, by index of the source.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        hidden: Sequence[Tensor],
        ready: Mapping[int, Tensor] | None = None,
    ) -> None:
        self.ensemble, self.hidden, self.ready = ensemble, list(hidden), ready or {}

    def __len__(self) -> int:
        return len(self.hidden[0])

    def chunks(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield a slice of the positions with one ``[n, V]`` fp32 tensor per source."""
        step = self.ensemble.logit_positions
        for start in range(0, len(self), step):
            where = slice(start, min(start + step, len(self)))
            yield where, [self._logits(s, where) for s in range(len(self.hidden))]

    def _logits(self, which: int, where: slice) -> Tensor:
        if which in self.ready:
            return self.ready[which][where]
        return self.ensemble.logits_of(which, self.hidden[which][where])

    def part(self, where: slice, keep: Tensor, logits: Sequence[Tensor] = ()) -> LogitView:
        """Those of some positions that are marked.

        Args:
            where: The positions.
            keep: ``[n]`` (on the CPU) which of them.
            logits: One ``[n, V]`` tensor per source, if they are there and need not be made again.
        """
        hidden, ready = [h[where] for h in self.hidden], list(logits)
        if not bool(keep.all()):
            hidden = [h[keep.to(h.device)] for h in hidden]
            ready = [x[keep.to(x.device)] for x in ready]
        return LogitView(self.ensemble, hidden, dict(enumerate(ready)))

    def check(self, finite: Tensor) -> None:
        """Raise an error that names the source if a result is not finite.

        Args:
            finite: ``[N]`` whether the result at each position is.

        Raises:
            NotFinite: It is not, and a source's logits are why.
        """
        if bool(finite.all()):
            return
        for where, logits in self.chunks():
            for name, values in zip(self.ensemble.names, logits, strict=True):
                bad = ~values.isfinite().all(dim=1)
                if bool(bad.any()):
                    raise NotFinite(name, where.start + int(bad.int().argmax()))


class InputBatch:
    """Sequences in flight: one layout, one cache per source.

    Args:
        ensemble: The sources.
        layout: The token table.
        caches: One per source.
        begun: Of each row, how many tokens it has in common with others (see `branch`).
    """

    def __init__(
        self,
        ensemble: Ensemble,
        layout: TokenTable,
        caches: list[Any],
        begun: Sequence[int] | None = None,
    ) -> None:
        self.ensemble, self.layout, self.caches = ensemble, layout, caches
        self.begun = list(begun or [0] * layout.ids.shape[0])

    def extend(self, ids: Tensor, valid: Tensor, wanted: Tensor) -> list[Tensor]:
        """Feed tokens to every source.

        Args:
            ids: ``[B, n]`` token ids.
            valid: ``[B, n]`` False for padding.
            wanted: ``[B, n]`` (on the CPU) True where the hidden state is asked for.

        Returns:
            One ``[K, H]`` tensor per source, K = number of wanted tokens, row by row.
        """
        start = self.layout.slots
        self.layout.append(ids, valid)
        index = wanted.flatten().nonzero().squeeze(1)
        return [self.run(s, start, index) for s in range(len(self.caches))]

    def run(self, which: int, start: int, wanted: Tensor | None = None) -> Tensor:
        """Run one source over the tokens from slot ``start`` on, which are in the layout already.

        Args:
            which: Index of the source; its cache ends before ``start``.
            start: First slot to be run.
            wanted: ``[K]`` flat indices into the ``[B, n]`` tokens; None is all of them.

        Returns:
            ``[K, H]`` hidden states.
        """
        source = self.ensemble.sources[which]
        try:
            return source.hidden(self.layout, start, self.caches[which], wanted)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # a model's own code may raise anything
            if "can't allocate memory" in str(error):  # how PyTorch runs out of it on a CPU
                raise MemoryError(str(error)) from error
            raise TrimixError(
                f"The forward pass of {source.name} failed: {type(error).__name__}: {error}",
                "what was finished is kept (--use_cache); try that model alone with --model hf",
            ) from error

    def trim(self, slots: int) -> None:
        """Cut off all slots but the first, which must hold every valid token."""
        if slots == self.layout.slots:
            return
        self.layout.trim(slots)
        for cache in self.caches:
            if cache is not None:
                cache.trim(slots - self.layout.common)

    def shrink(self, rows: Sequence[int]) -> list[int]:
        """Let go of all rows but these, in place: nothing is copied but what closes the gaps.

        Args:
            rows: Their indices, each once.

        Returns:
            The same in the order in which they now are.
        """
        behind = [row for row in rows if row >= len(rows)]
        stay = set(rows)
        order = [row if row in stay else behind.pop() for row in range(len(rows))]
        self.layout = self.layout.select(torch.tensor(order, dtype=torch.long))
        for cache in self.caches:
            if cache is not None:
                cache.shrink(order)
        self.begun = [self.begun[row] for row in order]
        return order

    def width(self, rows: Sequence[int], tokens: Sequence[int]) -> int:
        """Slots that rows need of their own.

        Args:
            rows: Their indices.
            tokens: How many tokens each of them has.
        """
        return max(count - self.begun[row] for row, count in zip(rows, tokens, strict=True))

    def fork(
        self,
        rows: Sequence[int],
        tokens: Sequence[int] | None = None,
        start: int = 0,
        counts: Sequence[int] | None = None,
    ) -> InputBatch:
        """A copy of these rows (repeats allowed), to be continued on its own.

        Args:
            rows: Their indices.
            tokens: How many tokens each copy has: then holes are left out. None keeps all slots.
            start: A slot; before it, everything is kept.
            counts: How many slots of each copy are kept from ``start`` on; None is all of them.
        """
        index = torch.tensor(list(rows), dtype=torch.long)
        layout = self.layout.select(index)
        if counts is not None:
            layout.keep(start, torch.tensor(list(counts)).to(layout.ids.device))
        slots = None
        if tokens is not None:
            slots = layout.packed(self.width(rows, tokens))
            layout = layout.select(torch.arange(len(index)), slots)
        caches = [None if cache is None else cache.taken(index, slots) for cache in self.caches]
        return InputBatch(self.ensemble, layout, caches, [self.begun[row] for row in rows])

    def branch(self, rows: Sequence[int]) -> InputBatch:
        """New rows that begin with these (repeats allowed), each of which is held once."""
        if not self.ensemble.shares:
            return self.fork(rows)
        distinct = list(dict.fromkeys(rows))
        of = [distinct.index(row) for row in rows]
        layout = self.layout.branched(distinct, of)
        own = [self.layout.own(row) for row in distinct]
        caches = [None if c is None else c.branched(distinct, own, of) for c in self.caches]
        return InputBatch(self.ensemble, layout, caches, layout.length.tolist())

    def join(self, other: InputBatch) -> InputBatch:
        """These rows and another's below them, as one batch."""
        layout = joined([self.layout, other.layout])
        own = layout.slots - layout.common
        pairs = zip(self.caches, other.caches, strict=True)
        caches = [None if a is None else stacked([a, b], own) for a, b in pairs]
        return InputBatch(self.ensemble, layout, caches, [*self.begun, *other.begun])


class Ensemble:
    """The sources in step.

    Args:
        sources: In the order of the weight vectors.
        unused_ids: Ids below the vocabulary's size that stand for no token.
    """

    def __init__(self, sources: Sequence[ModelRunner], unused_ids: Sequence[int] = ()) -> None:
        self.sources = list(sources)
        self.names = [source.name for source in self.sources]
        self.device = self.sources[0].device
        self.vocab_size = self.sources[0].vocab_size
        self.unused = torch.tensor(unused_ids, dtype=torch.long, device=self.device)
        self.chunk_tokens = CHUNK_TOKENS
        #: Rows per forward pass that memory has room for, as far as is known.
        self.most_rows = sys.maxsize
        #: Whether what rows begin with can be held once for all of them.
        self.shares = all(source.shares or source.plain for source in self.sources)
        #: Bytes that the caches of all sources grow by per token of a row.
        self.token_bytes = sum(source.token_bytes for source in self.sources)
        per_position = 4 * self.vocab_size * (len(self.sources) + 3)
        self.logit_positions = max(1, LOGIT_BYTES // per_position)

    def open(self, rows: int) -> InputBatch:
        """Start ``rows`` empty sequences."""
        caches = [source.new_cache() for source in self.sources]
        return InputBatch(self, TokenTable(rows, self.device), caches)

    def logits_of(self, which: int, hidden: Tensor) -> Tensor:
        """Logits ``[N, V]`` of one source, fp32, on the first source's device."""
        logits = self.sources[which].logits(hidden).to(self.device)
        if len(self.unused):
            # The same low value in every source stays that value in the fusion: weights sum to 1.
            logits = logits.index_fill(1, self.unused, _NEVER)
        return logits
