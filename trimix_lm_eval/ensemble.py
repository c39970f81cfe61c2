"""The sources in step: one layout, one cache each, logits on demand.

Logits exist for one chunk of positions at a time, of all sources together (invariant 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from trimix_lm_eval.errors import NotFinite, TrimixError
from trimix_lm_eval.layout import Layout
from trimix_lm_eval.sources import Source

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
    """

    def __init__(self, ensemble: Ensemble, hidden: Sequence[Tensor]) -> None:
        self.ensemble, self.hidden = ensemble, list(hidden)

    def __len__(self) -> int:
        return len(self.hidden[0])

    def chunks(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield a slice of the positions with one ``[n, V]`` fp32 tensor per source."""
        step = self.ensemble.logit_positions
        for start in range(0, len(self), step):
            where = slice(start, min(start + step, len(self)))
            yield where, self.ensemble.logits([h[where] for h in self.hidden])

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


class Rows:
    """Sequences in flight: one layout, one cache per source."""

    def __init__(self, ensemble: Ensemble, layout: Layout, caches: list[Any]) -> None:
        self.ensemble, self.layout, self.caches = ensemble, layout, caches

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
        out = []
        for source, cache in zip(self.ensemble.sources, self.caches, strict=True):
            try:
                out.append(source.hidden(self.layout, start, cache, index))
            except (torch.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:  # a model's own code may raise anything
                if "can't allocate memory" in str(error):  # how PyTorch runs out of it on a CPU
                    raise MemoryError(str(error)) from error
                raise TrimixError(
                    f"The forward pass of {source.name} failed: {type(error).__name__}: {error}",
                    "what was finished is kept (--use_cache); try that model alone with --model hf",
                ) from error
        return out

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only."""
        index = torch.tensor(list(rows), dtype=torch.long)
        self.layout = self.layout.select(index)
        for cache in self.caches:
            for layer in cache.layers if cache is not None else ():
                layer.batch_select_indices(index.to(layer.keys.device))

    def fork(self, rows: Sequence[int]) -> Rows:
        """A copy of these rows (repeats allowed), to be continued on its own."""
        index = torch.tensor(list(rows), dtype=torch.long)
        caches = []
        for source, cache in zip(self.ensemble.sources, self.caches, strict=True):
            copy = source.new_cache()
            if copy is not None:
                for number, layer in enumerate(cache.layers):
                    at = index.to(layer.keys.device)
                    copy.update(layer.keys[at], layer.values[at], number)
            caches.append(copy)
        return Rows(self.ensemble, self.layout.select(index), caches)


class Ensemble:
    """The sources in step.

    Args:
        sources: In the order of the weight vectors.
        unused_ids: Ids below the vocabulary's size that stand for no token.
    """

    def __init__(self, sources: Sequence[Source], unused_ids: Sequence[int] = ()) -> None:
        self.sources = list(sources)
        self.names = [source.name for source in self.sources]
        self.device = self.sources[0].device
        self.vocab_size = self.sources[0].vocab_size
        self.unused = torch.tensor(unused_ids, dtype=torch.long, device=self.device)
        self.chunk_tokens = CHUNK_TOKENS
        per_position = 4 * self.vocab_size * (len(self.sources) + 3)
        self.logit_positions = max(1, LOGIT_BYTES // per_position)

    def open(self, rows: int) -> Rows:
        """Start ``rows`` empty sequences."""
        caches = [source.new_cache() for source in self.sources]
        return Rows(self, Layout(rows, self.device), caches)

    def logits(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """One ``[N, V]`` fp32 tensor per source, all on the first source's device."""
        out = [
            source.logits(h).to(self.device) for source, h in zip(self.sources, hidden, strict=True)
        ]
        if len(self.unused):
            # The same low value in every source stays that value in the fusion: weights sum to 1.
            out = [logits.index_fill(1, self.unused, _NEVER) for logits in out]
        return out
