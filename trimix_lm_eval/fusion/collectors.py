"""What policies see of a prompt: collectors watch its forward passes and keep what they need.

Invariant 5: a collector never sees the answer to the prompt. Invariant 4: it is shown logits a
chunk at a time, and the grid's collector keeps no more than one sum per point, whatever the length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from trimix_lm_eval.fusion.logits import best_point, grid_entropy, grid_nll
from trimix_lm_eval.fusion.newton import Moments, moments
from trimix_lm_eval.fusion.weights import Weights, source_vector


class View(Protocol):
    """Logits on demand: N positions of one row, never all in memory at once."""

    def chunks(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield a slice of the N positions with one ``[n, V]`` fp32 tensor per source."""
        ...

    def check(self, finite: Tensor) -> None:
        """Raise an error that names the source if ``finite`` is False anywhere."""
        ...


class Choice(NamedTuple):
    """What a policy chose for a prompt.

    Attributes:
        weights: The point.
        nll: Mean NLL per prompt token that was seen, at that point, in nats; None if none was.
        tokens: How many prompt tokens were seen.
        nlls: The mean under every point of the policy's grid, in its order; None if there is none.
    """

    weights: Weights
    nll: float | None = None
    tokens: int = 0
    nlls: tuple[float, ...] | None = None


class PromptCollector:
    """Watches one prompt as its forward passes go by, and keeps what its policy needs.

    A collector looks either at the tokens of a prompt (`absorb` and `read`) or at its last position
    alone (`read_next`).

    Attributes:
        keeps_views: Whether it keeps the views that it is given, and looks at their logits later.
        next_only: Whether it looks at the last position alone.
        count: Tokens seen.
    """

    keeps_views: ClassVar[bool] = False
    next_only: ClassVar[bool] = False
    count: int = 0

    def absorb(self, other: Any) -> None:
        """Take over what a collector of the same kind has seen of the first tokens of the prompt.

        Args:
            other: That collector; it is shared by several prompts and must not be changed.
        """
        raise NotImplementedError

    def read(self, view: View, targets: Tensor) -> None:
        """Take in some tokens of the prompt and the logits that predict them.

        Args:
            view: N positions.
            targets: ``[N]``, the prompt tokens that follow those positions.
        """
        raise NotImplementedError

    def read_next(self, view: View) -> None:
        """Take in the last position of the prompt, which predicts the first answer token.

        Args:
            view: One position.
        """
        raise NotImplementedError


class GridCollector(PromptCollector):
    """Sums the NLL of the prompt under every point: constant memory.

    Args:
        names: The sources, in the order of the logits.
        points: The P points.

    Attributes:
        nll: ``[P]`` sums, float64 on the CPU.
    """

    def __init__(self, names: tuple[str, ...], points: Sequence[Weights]) -> None:
        self.vectors = torch.tensor([source_vector(p, names) for p in points])  # [P, S]
        self.nll = torch.zeros(len(points), dtype=torch.float64)  # [P]

    def absorb(self, other: GridCollector) -> None:
        """Add the other's sums."""
        self.count += other.count
        self.nll += other.nll

    def read(self, view: View, targets: Tensor) -> None:
        """Add the NLL of some tokens."""
        for where, logits in view.chunks():
            vectors = self.vectors.to(logits[0].device)
            nll = grid_nll(logits, targets[where], vectors)  # [P, n]
            total = nll.sum(dim=1, dtype=torch.float64).cpu()
            view.check(total.isfinite())
            self.nll += total
        self.count += len(targets)


class NewtonCollector(PromptCollector):
    """Keeps the hidden states of the prompt, so that Newton's method can come back to them.

    Args:
        names: The sources, in the order of the logits.
    """

    keeps_views = True

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.seen: list[tuple[View, Tensor]] = []

    def absorb(self, other: NewtonCollector) -> None:
        """Share the other's hidden states."""
        self.count += other.count
        self.seen += other.seen

    def read(self, view: View, targets: Tensor) -> None:
        """Keep some tokens."""
        if len(targets):
            self.seen.append((view, targets))
            self.count += len(targets)

    def moments(self, weights: Tensor) -> Moments:
        """Sum of NLL and its derivatives over all tokens read, at source weights ``[S]``."""
        size = len(self.names)
        total = Moments(
            torch.zeros((), dtype=torch.float64),
            torch.zeros(size, dtype=torch.float64),
            torch.zeros(size, size, dtype=torch.float64),
        )
        for view, targets in self.seen:
            for where, logits in view.chunks():
                w = weights.to(logits[0])
                total = total.plus(moments(logits, targets[where], w))
            view.check(total.nll.isfinite())
        return total


class EntropyCollector(PromptCollector):
    """Keeps the entropy of the first answer token's distribution under every point.

    Args:
        names: The sources, in the order of the logits.
        points: The P points.

    Attributes:
        entropy: ``[P]`` in nats, on the CPU; None before `read_next`.
    """

    next_only = True

    def __init__(self, names: tuple[str, ...], points: Sequence[Weights]) -> None:
        self.vectors = torch.tensor([source_vector(p, names) for p in points])  # [P, S]
        self.entropy: Tensor | None = None  # [P]

    def read_next(self, view: View) -> None:
        """Measure the entropies."""
        for _, logits in view.chunks():
            vectors = self.vectors.to(logits[0].device)
            self.entropy = grid_entropy(logits, vectors)[:, -1].cpu()
            view.check(self.entropy.isfinite())


def prequential(nll: Tensor, points: Sequence[Weights]) -> Tensor:
    """For each token, the point that suits the tokens before it (Dawid 1984).

    Args:
        nll: ``[P, T]`` NLL of every token under every point.
        points: The P points.

    Returns:
        ``[T]`` indices into ``points``.
    """
    nll = nll.double()
    before = torch.cat([nll.new_zeros(len(nll), 1), nll.cumsum(dim=1)], dim=1)[:, :-1]  # [P, T]
    counts = torch.arange(nll.shape[1], dtype=torch.float64).clamp_min(1.0)
    mean = before / counts
    chosen = (mean <= mean.amin(dim=0) + 1e-6).to(torch.uint8).argmax(dim=0)
    if len(chosen):
        chosen[0] = best_point(nll[:, 0], 0, points)
    return chosen
