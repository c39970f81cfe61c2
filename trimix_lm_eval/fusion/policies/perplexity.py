"""``ppl``: per sample, the point under which the prompt has the lowest perplexity."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from trimix_lm_eval.fusion.collectors import Choice, PromptCollector, View
from trimix_lm_eval.fusion.policies.base import GridPolicy, register
from trimix_lm_eval.fusion.weights import Weights, axes, source_vector
from trimix_lm_eval.utils.options import option
from trimix_lm_eval.utils.validation import one_of

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclasses.dataclass(frozen=True)
class PromptPerplexity(GridPolicy):
    """Per sample, the point of the grid with the lowest perplexity of the *prompt*.

    argmin over (alpha, beta) of -sum_t log p(prompt_t | prompt_<t). The paper's method. Honest
    everywhere: it sees no answer. Known weakness: small_cpt nearly always has the lower NLL on
    text in the language, so the choice says little about the task.
    """

    name = "ppl"
    honesty = "label_free"
    honest_when = "always: no answer is seen"
    cost = (
        "one forward of each source over the prompt, which generation needs anyway, plus the "
        "grid's arithmetic"
    )
    prompt_nll = True

    refine: str | None = option(
        None,
        "`quadratic`",
        "Chooses the lowest point between those of the grid: of the quadratic that fits the best "
        "point and its neighbours. A text without a prompt is weighted by the points of the grid "
        "all the same.",
        partial(one_of, accepted=("quadratic",)),
    )

    def __post_init__(self) -> None:
        """Check the options, and that there is something between the points of the grid."""
        super().__post_init__()
        if self.refine is not None:
            axes(self.grid)

    def collector(self, names: tuple[str, ...]) -> PromptCollector:
        """Sums over the grid."""
        return GridCollector(names, self.grid)

    def choose(self, collectors: Sequence[PromptCollector]) -> Choice:
        """Lowest mean over prompts of the mean NLL per token (of one prompt: its own)."""
        import torch

        from trimix_lm_eval.fusion.logits import best_point

        used = [c for c in collectors if isinstance(c, GridCollector) and c.count]
        if not used:
            return Choice(self.without_evidence())
        count = sum(c.count for c in used)
        nll = torch.stack([c.nll / c.count for c in used]).mean(dim=0)  # [P]
        nlls = tuple(nll.tolist())
        best = best_point(nll, 1, self.grid)
        if self.refine is None:
            return Choice(self.grid[best], nlls[best], count, nlls)
        from trimix_lm_eval.fusion.quadratic import lowest

        point, value = lowest(self.grid, nlls, best)
        return Choice(point, value, count, nlls)

    @classmethod
    def told(cls, option: str, value: Any) -> str:
        """The refinement by its name."""
        return str(value) if option == "refine" else super().told(option, value)


class GridCollector(PromptCollector):
    """Sums the NLL of the prompt under every point: constant memory.

    Args:
        names: The sources, in the order of the logits.
        points: The P points.

    Attributes:
        nll: ``[P]`` sums, float64 on the CPU, of what is settled.
    """

    def __init__(self, names: tuple[str, ...], points: Sequence[Weights]) -> None:
        import torch

        self.vectors = torch.tensor([source_vector(p, names) for p in points])  # [P, S]
        self.nll = torch.zeros(len(points), dtype=torch.float64)  # [P]
        self._new: Tensor | None = None  # [P]

    def absorb(self, other: GridCollector) -> None:
        """Add the other's sums."""
        self.count += other.count
        self.nll += other.nll

    def read(self, view: View, targets: Tensor) -> None:
        """Add the NLL of some tokens."""
        import torch

        from trimix_lm_eval.fusion.logits import grid_nll

        for where, logits in view.chunks():
            nll = grid_nll(logits, targets[where], self.vectors)  # [P, n]
            total = nll.sum(dim=1, dtype=torch.float64)
            self._new = total if self._new is None else self._new + total
        self.count += len(targets)

    def unsettled(self) -> Tensor | None:
        """The sums since the last `settle`, where they were made."""
        return self._new

    def settle(self, values: Tensor) -> None:
        """Add these sums."""
        self.nll, self._new = self.nll + values, None
