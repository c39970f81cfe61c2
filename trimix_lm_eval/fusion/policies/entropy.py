"""``ent``: per sample, the point under which the first answer token is least uncertain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trimix_lm_eval.fusion.collectors import Choice, PromptCollector, View
from trimix_lm_eval.fusion.policies.base import GridPolicy, register
from trimix_lm_eval.fusion.weights import Weights, source_vector

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclasses.dataclass(frozen=True)
class Entropy(GridPolicy):
    """Per sample, the point of the grid with the lowest entropy of the first answer token.

    argmin over (alpha, beta) of H(softmax L) at the end of the prompt; the paper's alternative.
    Honest: no answer is seen. Entropy is not convex in the weights, so there is no ``refine``.
    """

    name = "ent"
    honesty = "label_free"
    honest_when = "always"
    cost = "as `ppl`, grid at one position"

    def collector(self, names: tuple[str, ...]) -> PromptCollector:
        """Entropies at the last position."""
        return EntropyCollector(names, self.grid)

    def choose(self, collectors: Sequence[PromptCollector]) -> Choice:
        """Lowest entropy; of several prompts, lowest mean entropy."""
        import torch

        from trimix_lm_eval.fusion.logits import best_point

        entropies = [c.entropy for c in collectors if isinstance(c, EntropyCollector)]
        read = [e for e in entropies if e is not None]
        if not read:
            return Choice(self.without_evidence())
        return Choice(self.grid[best_point(torch.stack(read).mean(0), 1, self.grid)])


class EntropyCollector(PromptCollector):
    """Keeps the entropy of the first answer token's distribution under every point.

    Args:
        names: The sources, in the order of the logits.
        points: The P points.

    Attributes:
        entropy: ``[P]`` in nats, on the CPU; None before it is settled.
    """

    next_only = True

    def __init__(self, names: tuple[str, ...], points: Sequence[Weights]) -> None:
        import torch

        self.vectors = torch.tensor([source_vector(p, names) for p in points])  # [P, S]
        self.entropy: Tensor | None = None  # [P]
        self._new: Tensor | None = None  # [P]

    def read_next(self, view: View) -> None:
        """Measure the entropies."""
        from trimix_lm_eval.fusion.logits import grid_entropy

        for _, logits in view.chunks():
            self._new = grid_entropy(logits, self.vectors)[:, -1]

    def unsettled(self) -> Tensor | None:
        """The entropies, where they were measured."""
        return self._new

    def settle(self, values: Tensor) -> None:
        """Keep the entropies."""
        self.entropy, self._new = values, None
