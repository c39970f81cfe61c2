"""What policies see of a prompt: collectors watch its forward passes and keep what they need.

Invariant 5: a collector never sees the answer to the prompt. Invariant 4: it is shown logits a
chunk at a time, and the grid's collector keeps no more than one sum per point, whatever the length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from trimix_lm_eval.fusion.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor


class View(Protocol):
    """Logits on demand: N positions of one row, never all in memory at once."""

    def chunks(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield a slice of the N positions with one ``[n, V]`` fp32 tensor per source."""
        ...

    def check(self, finite: Tensor) -> None:
        """Raise an error that names the source if results are NaN or infinite because of it.

        Args:
            finite: Whether each result that was made of these logits is, in whatever shape.
        """
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
    alone (`read_next`). What it keeps may stay where it was computed: the engine brings what
    `unsettled` returns to the CPU, of all prompts of a batch at once, checks that it is finite, and
    hands it to `settle`. A collector that knows neither brings its results to the CPU itself.

    Attributes:
        next_only: Whether it looks at the last position alone.
        count: Tokens seen.
    """

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

    def unsettled(self) -> Tensor | None:
        """What has been computed since the last `settle`, ``[K]``; None if nothing has."""
        return None

    def settle(self, values: Tensor) -> None:
        """Keep what `unsettled` returned: ``[K]`` float64 numbers, now on the CPU."""
        raise NotImplementedError


def prequential(nll: Tensor, points: Sequence[Weights]) -> Tensor:
    """For each token, the point that suits the tokens before it (Dawid 1984).

    Args:
        nll: ``[P, T]`` NLL of every token under every point.
        points: The P points.

    Returns:
        ``[T]`` indices into ``points``.
    """
    import torch

    from trimix_lm_eval.fusion.logits import best_point

    nll = nll.double()
    before = torch.cat([nll.new_zeros(len(nll), 1), nll.cumsum(dim=1)], dim=1)[:, :-1]  # [P, T]
    counts = torch.arange(nll.shape[1], dtype=torch.float64).clamp_min(1.0)
    mean = before / counts
    chosen = (mean <= mean.amin(dim=0) + 1e-6).to(torch.uint8).argmax(dim=0)
    if len(chosen):
        chosen[0] = best_point(nll[:, 0], 0, points)
    return chosen
