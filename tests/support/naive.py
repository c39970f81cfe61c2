"""Each formula written down plainly: one row, no cache, no batch, no chunk. The reference."""

from __future__ import annotations

import functools

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


@functools.lru_cache(maxsize=64)  # the points of a grid, and of an optimizer, share their logits
@torch.no_grad()
def whole_row(model: PreTrainedModel, ids: tuple[int, ...]) -> torch.Tensor:
    """Logits of one row, padding rows of the embeddings included; [T, V]"""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


class Naive:
    """Sources loaded by transformers alone, run one whole row at a time."""

    def __init__(
        self, folders: dict[str, str], vocab_size: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self.vocab_size = vocab_size
        self.models = {
            role: AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
            for role, folder in folders.items()
        }

    def logits(self, role: str, ids: list[int]) -> torch.Tensor:
        """[T, V]"""
        return whole_row(self.models[role], tuple(ids))[:, : self.vocab_size].double()

    def fused(self, ids, alpha, beta, gamma=None) -> torch.Tensor:
        """L_sb + alpha (L_li - L_lb) + beta (L_sc - L_sb) + gamma (L_lb - L_sb)"""
        li, sc, sb = (self.logits(r, ids) for r in ("large_ins", "small_cpt", "small_base"))
        if gamma is None:
            return alpha * li + beta * sc + (1 - alpha - beta) * sb
        lb = self.logits("large_base", ids)
        return sb + alpha * (li - lb) + beta * (sc - sb) + gamma * (lb - sb)

    def gated(self, ids, delta=0.0) -> torch.Tensor:
        host, scorer = self.logits("large_ins", ids), self.logits("small_cpt", ids)
        rows = []
        for h, s in zip(host, scorer, strict=True):
            e = torch.softmax(s, -1)[h.argmax()]
            w = min(1.0, 1.0 - float(e) + delta)
            rows.append((1 - w) * h + w * s)
        return torch.stack(rows)

    @staticmethod
    def nll(logits: torch.Tensor, ids: list[int], start: int) -> torch.Tensor:
        """NLL of ids[start:], each from the position before it."""
        log_p = logits.log_softmax(-1)
        return torch.stack([-log_p[t - 1, ids[t]] for t in range(start, len(ids))])

    def grid(self, ids, start, points) -> torch.Tensor:
        """[P, T - start]"""
        return torch.stack([self.nll(self.fused(ids, *p), ids, start) for p in points])

    def greedy(self, ids, steps, alpha, beta, ends=(257,)) -> list[int]:
        ids, new = list(ids), []
        for _ in range(steps):
            token = int(self.fused(ids, alpha, beta)[-1].argmax())
            if token in ends:
                break
            new.append(token)
            ids.append(token)
        return new
