"""A source: one causal LM, loaded by transformers and run by explicit positions and masks.

Every forward passes positions and a mask made from the `TokenTable`. The mask alone decides which
cached tokens a query sees, so padding, holes and sliding windows are exact (invariant 2), and one
plain cache type serves every architecture. A model is split into its trunk (tokens to hidden
states) and its head (hidden states to logits): hidden states are small enough to keep, logits are
made on demand, for the tokenizer's vocabulary only (invariants 3 and 4).

Whether a model obeys all this is not guessed from its family: it is tried out when the model is
loaded (`ModelRunner.probe`), and one that does not is run plainly, whole rows without a cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from trimix_lm_eval.engine import attention
from trimix_lm_eval.engine.token_table import TokenTable
from trimix_lm_eval.utils.errors import TrimixError, warn_once

#: Tokens beyond which no window is probed for.
_LONGEST_REACH = 1024


class ModelRunner:
    """One causal LM: its trunk, its head, and how it wants its masks.

    Args:
        name: Its role.
        model: A transformers causal LM in evaluation mode.
        vocab_size: Leading token ids that exist in the tokenizer; the rest is padding.
        own_attention: Whether `attention` may take the place of sdpa; False if the user chose.
    """

    def __init__(self, name: str, model: Any, vocab_size: int, own_attention: bool = True) -> None:
        self.name, self.model, self.vocab_size = name, model, vocab_size
        self.own_attention = own_attention
        self.config = model.config.get_text_config()
        self.device = model.get_input_embeddings().weight.device
        self.dtype = model.dtype
        if self.device.type == "meta":
            raise TrimixError(
                f"{name} does not fit on the GPUs: part of it was left on the CPU or on disk.",
                f"load it in fewer bits ({name}_quantization=int8 or nf4), or use more GPUs",
            )
        self.mask_by_type = bool(getattr(self.config, "layer_types", None))
        self.plain = False
        self.token_bytes = 0  # of the cache, per token
        self.finish: Callable[[Tensor], Tensor] = _identity
        #: Whether rows can have a beginning in common (see `attention`).
        self.shares = False
        self.probe()

    def new_cache(self) -> Any:
        """An empty cache that keeps every token; windows are cut by the mask."""
        from trimix_lm_eval.engine.kv_cache import KVCache

        return None if self.plain else KVCache()

    def hidden(self, layout: TokenTable, start: int, cache: Any, wanted: Tensor | None) -> Tensor:
        """Run the tokens from slot ``start`` on.

        Args:
            layout: The table, the new tokens included.
            start: First new slot.
            cache: This source's cache for the same rows; grows by the new slots.
            wanted: ``[K]`` flat indices into the ``[B, n]`` new tokens; None is all of them.

        Returns:
            ``[K, H]`` final hidden states (of a plain source: its logits, ``[K, V]``).
        """
        if self.plain:
            return self._recompute(layout, start, wanted)
        output = self.model.base_model(
            input_ids=layout.ids[:, start:].to(self.device),
            position_ids=layout.positions[:, start:].to(self.device),
            attention_mask=self._mask(layout, start),
            past_key_values=cache,
            use_cache=True,
            **({"trimix_common": cache.common} if cache.common else {}),
        )
        states = output.last_hidden_state.flatten(0, 1)  # [B * n, H]
        return states if wanted is None else states[wanted.to(states.device)]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of ``[N, H]`` hidden states: ``[N, V]``, fp32, tokenizer's vocabulary only."""
        if not self.plain:
            hidden = self.finish(self.model.get_output_embeddings()(hidden))
        return hidden[:, : self.vocab_size].float()

    def _mask(self, layout: TokenTable, start: int) -> Any:
        """Additive masks ``[B, 1, n, S]``: one, or one per type of layer."""
        window = getattr(self.config, "sliding_window", None)
        block = getattr(self.config, "attention_chunk_size", None)
        if not self.mask_by_type:
            return layout.mask(start, window, block, self.dtype, self.device)
        kinds = {
            "full_attention": (None, None),
            "sliding_attention": (window, None),
            "chunked_attention": (None, block),
        }
        return {
            kind: layout.mask(start, *kinds[kind], self.dtype, self.device)
            for kind in set(self.config.layer_types)
        }

    def _recompute(self, layout: TokenTable, start: int, wanted: Tensor | None) -> Tensor:
        """Logits without a cache: each row from its first token, alone."""
        width = layout.slots - start
        if wanted is None:
            wanted = torch.arange(layout.ids.shape[0] * width)
        out: list[Tensor] = []
        for row in range(layout.ids.shape[0]):
            mine = wanted[(wanted >= row * width) & (wanted < (row + 1) * width)] - row * width
            if not len(mine):
                continue
            valid = layout.valid[row]
            last = layout.positions[row, start + mine.to(valid.device)]
            ids = layout.ids[row][valid][: int(last.max()) + 1]
            result = self.model(input_ids=ids[None].to(self.device), use_cache=False)
            out.append(result.logits[0][last.to(result.logits.device), : self.vocab_size])
        return torch.cat(out) if out else torch.zeros(0, self.vocab_size)

    @torch.inference_mode()
    def probe(self) -> None:
        """Find out by trial how this model is to be run.

        A short text is run plainly, and again with padding, holes and a cache. If the two agree
        the model obeys masks and positions; else it is run plainly for good.
        """
        length = 24 + _reach(self.config)
        ids = torch.arange(length) * 7919 % min(self.vocab_size, self.config.vocab_size)
        try:
            output = self.model(input_ids=ids[None].to(self.device), use_cache=False)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise TrimixError(
                f"{self.name} was loaded, but fails on a short text: {error}",
                "check dtype, quantization and attn_implementation of this source",
            ) from error
        expected = output.logits[0, length // 2 :, : self.vocab_size].float()
        self.shares = self.own_attention and attention.install(self.model)
        if self.shares and self._found(ids, expected):
            return
        if self.shares:
            attention.uninstall(self.model)
            self.shares = False
        if self._found(ids, expected):
            return
        self.plain, self.finish, self.token_bytes = True, _identity, 0
        warn_once(
            f"{self.name} ({self.config.model_type}) does not follow explicit attention masks; it "
            "is run row by row without a cache. Results are exact, but slow."
        )

    def _found(self, ids: Tensor, expected: Tensor) -> bool:
        """Look for masks and an end under which the model gives what is expected of it."""
        best = math.inf
        for by_type in dict.fromkeys((bool(getattr(self.config, "layer_types", None)), False)):
            self.mask_by_type, self.finish = by_type, _identity
            raw = self._probe_cached(ids)
            if raw is None:
                continue
            for finish in _finishes(self.config):
                off = float((finish(raw) - expected).norm() / expected.norm())
                if off < best:
                    best, found = off, (by_type, finish)
        if best > self._tolerance():
            return False
        self.mask_by_type, self.finish = found
        return True

    def _tolerance(self) -> float:
        """Rounding that a probe may show, relative to the logits; a wrong mask is far beyond it."""
        if getattr(self.model, "is_quantized", False):
            return 0.1  # how int8 rounds depends on what else is in the batch
        return 1e-3 if self.dtype == torch.float32 else 0.05

    def _probe_cached(self, ids: Tensor) -> Tensor | None:
        """Logits of the second half of a text, fed in pieces with padding before and between.

        The first tokens after the hole are those that a window counted in slots gets wrong. Of the
        pieces after it one is short and one is long (see `attention.FEW`), and if rows can have a
        beginning in common, the first half is one.
        """
        half, junk = len(ids) // 2, ids.flip(0)
        middle = half + 4
        pieces = [(5, ids[:half], 6), (3, ids[half:middle], 0), (attention.FEW, ids[middle:], 0)]
        layout, cache, found = TokenTable(2, self.device), self.new_cache(), []
        try:
            for before, real, after in pieces:
                start = layout.slots
                tokens = torch.cat([junk[:before], real, junk[:after]])
                valid = torch.zeros(len(tokens), dtype=torch.bool)
                valid[before : before + len(real)] = True
                rows = torch.stack([tokens, tokens.roll(1)])
                layout.append(rows, torch.stack([valid, torch.ones_like(valid)]))
                found.append(self.hidden(layout, start, cache, valid.nonzero().squeeze(1)))
                if len(found) == 1:
                    self.token_bytes = cache.nbytes // layout.ids.numel()
                if len(found) == 1 and self.shares:
                    both = [0, 1]
                    cache = cache.branched(both, [layout.own(row) for row in both], both)
                    layout = layout.branched(both, both)
            return torch.cat([self.logits(states) for states in found[1:]])
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a foreign forward raises means: it cannot be run this way
            return None


def _identity(logits: Tensor) -> Tensor:
    return logits


def _finishes(config: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    """What models do to logits after the output embedding, by the config's own fields."""
    yield _identity
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        yield lambda logits: (logits / cap).tanh() * cap
    scale = getattr(config, "logit_scale", None)
    if scale:
        yield lambda logits: logits * scale
    divisor = getattr(config, "logits_scaling", None)
    if divisor:
        yield lambda logits: logits / divisor


def _reach(config: Any) -> int:
    """How far a model's own kinds of local attention look, as far as its config tells.

    A window that the masks here know nothing of shows in the probe only if the text is longer.
    """
    known = {"sliding_window", "max_window_layers"}
    values = [
        value
        for name, value in vars(config).items()
        if ("window" in name or "local" in name) and name not in known
    ]
    return max((v for v in values if type(v) is int and 0 < v <= _LONGEST_REACH), default=0)
