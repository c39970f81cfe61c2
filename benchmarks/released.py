"""The released algorithm, scripted as the paper tells it. Baseline and reference of all programs.

One request at a time. Choosing: for each of the 36 points a full pass of the three models over the
prompt and a cross entropy; nothing is kept from one point to the next. Scoring: a full pass of the
three models over context and option. Writing: token by token with a KV cache per model, fused at
every step. What the authors' scripts do beyond that and slower still (copies of logits between
devices, no cache for some families) is not here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from trimix_lm_eval import TriMix
from trimix_lm_eval.fusion.weights import PAPER_GRID, Weights

ROLES = ("large_ins", "small_cpt", "small_base")


class Released:
    """Three models, run plainly.

    Args:
        model: A TriMix that has loaded all three: the very same weights are run.
    """

    def __init__(self, model: TriMix) -> None:
        sources = {source.name: source for source in model.fuser.ensemble.sources}
        self.models: list[Any] = [sources[role].model for role in ROLES]
        self.device = model.fuser.ensemble.device
        self.tokenizer = model.tokenizer
        self.vocab = sources["large_ins"].vocab_size

    @torch.inference_mode()
    def choose(self, prompt: str, points: Sequence[Weights] = PAPER_GRID) -> Weights:
        """The point under which the prompt has the lowest perplexity, among equals the first."""
        ids = self._ids(prompt)
        best, lowest = points[0], math.inf
        for point in points:
            loss = float(cross_entropy(self._fused(ids, point)[:-1], ids[0, 1:]))
            if loss < lowest:
                best, lowest = point, loss
        return best

    @torch.inference_mode()
    def score(self, context: str, option: str, weights: Weights) -> float:
        """Log-likelihood of an option."""
        start = self._ids(context).shape[1]
        ids = self._ids(context + option)
        fused = self._fused(ids, weights)[start - 1 : -1]
        return -float(cross_entropy(fused, ids[0, start:], reduction="sum"))

    @torch.inference_mode()
    def generate(self, prompt: str, max_new_tokens: int, stop: str, weights: Weights) -> str:
        """Greedy text up to a stop string (if it is not empty) or the end token."""
        caches = [DynamicCache() for _ in self.models]
        ids, new = self._ids(prompt), []
        while len(new) < max_new_tokens:
            last = [
                model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                for model, cache in zip(self.models, caches, strict=True)
            ]
            token = int(self._fuse([logits[0] for logits in last], weights)[-1].argmax())
            if token == self.tokenizer.eos_token_id:
                break
            new.append(token)
            if stop and stop in self.tokenizer.decode(new):
                break
            ids = torch.tensor([[token]], device=self.device)
        text = self.tokenizer.decode(new)
        return text.split(stop)[0] if stop else text

    @torch.inference_mode()
    def agreement(self, prompt: str, text: str, weights: Weights) -> float:
        """Share of a text's tokens at which small_cpt alone would write what the fusion writes."""
        start, ids = self._ids(prompt).shape[1], self._ids(f"{prompt} {text}")
        both = [self._fused(ids, w)[start - 1 : -1].argmax(-1) for w in (weights, Weights(0, 1))]
        return float((both[0] == both[1]).float().mean())

    def _ids(self, text: str) -> Tensor:
        return torch.tensor([self.tokenizer.encode(text)], device=self.device)  # [1, T]

    def _fused(self, ids: Tensor, weights: Weights) -> Tensor:
        """``[T, V]``, from full passes."""
        passes = [model(input_ids=ids, use_cache=False).logits[0] for model in self.models]
        return self._fuse(passes, weights)

    def _fuse(self, logits: Sequence[Tensor], weights: Weights) -> Tensor:
        """Weighted sum in fp32 over the tokenizer's vocabulary."""
        large, cpt, base = (x[:, : self.vocab].float() for x in logits)
        alpha, beta, *_ = weights
        return alpha * large + beta * cpt + (1 - alpha - beta) * base
