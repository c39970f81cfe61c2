"""What policies see of a prompt: readers watch its forward passes go by and keep what they need.

A reader never sees the answer (invariant 5), and the grid's reader never keeps logits: 36 sums per
prompt, whatever its length (invariant 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from trimix_lm_eval.fusion.logits import best_point, grid_entropy, grid_nll
from trimix_lm_eval.fusion.newton import Moments, moments
from trimix_lm_eval.fusion.weights import Weights


class View(Protocol):
    """Logits on demand: N positions of one row, never all in memory at once."""

    def chunks(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield a slice of the N positions with one ``[n, V]`` fp32 tensor per source."""
        ...

    def check(self, finite: Tensor) -> None:
        """Raise an error that names the source if ``finite`` is False anywhere."""
        ...

    def part(self, where: slice, keep: Tensor, logits: Sequence[Tensor] = ()) -> View:
        """Those of the positions ``where`` that ``keep`` marks; their ``logits`` may be there."""
        ...


class Choice(NamedTuple):
    """What a policy chose for a prompt.

    Attributes:
        weights: The point.
        nll: Mean NLL per judged prompt token at that point, in nats; None if none was judged.
        tokens: How many prompt tokens were judged.
        nlls: The mean under every point of the policy's grid, in its order; None if there is none.
    """

    weights: Weights
    nll: float | None = None
    tokens: int = 0
    nlls: tuple[float, ...] | None = None


class PromptCollector:
    """Reads one prompt as its forward passes go by, and keeps what its policy needs.

    Args:
        names: The sources, in the order of the logits.

    Attributes:
        later: Whether it keeps the views it is given, and looks at their logits when it is asked.
        count: Tokens read.
    """

    later = False

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.count = 0

    def absorb(self, other: PromptCollector) -> None:
        """Take over what another reader has seen of the beginning of the same prompt."""
        self.count += other.count

    def read(self, view: View, targets: Tensor) -> None:
        """Take in a run of prompt tokens and the logits that predicted them.

        Args:
            view: N positions.
            targets: ``[N]``, the prompt tokens that follow those positions.
        """

    def read_next(self, view: View) -> None:
        """Take in the last position of the prompt, which predicts the first answer token."""


class GridCollector(PromptCollector):
    """Sums the NLL of the prompt under every point: constant memory."""

    def __init__(self, names: Sequence[str], points: Sequence[Weights]) -> None:
        super().__init__(names)
        self.vectors = torch.tensor([p.vector(names) for p in points])  # [P, S]
        self.nll = torch.zeros(len(points), dtype=torch.float64)  # [P]

    def absorb(self, other: PromptCollector) -> None:
        """Add the sums of the beginning."""
        assert isinstance(other, GridCollector)
        super().absorb(other)
        self.nll += other.nll

    def read(self, view: View, targets: Tensor) -> None:
        """Add the NLL of these tokens."""
        for where, logits in view.chunks():
            vectors = self.vectors.to(logits[0].device)
            nll = grid_nll(logits, targets[where], vectors)  # [P, n]
            total = nll.sum(dim=1, dtype=torch.float64).cpu()
            view.check(total.isfinite())
            self.nll += total
        self.count += len(targets)


class NewtonCollector(PromptCollector):
    """Keeps the hidden states of the prompt, so that Newton's method can come back to them."""

    later = True

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.seen: list[tuple[View, Tensor]] = []

    def absorb(self, other: PromptCollector) -> None:
        """Share the hidden states of the beginning."""
        assert isinstance(other, NewtonCollector)
        super().absorb(other)
        self.seen += other.seen

    def read(self, view: View, targets: Tensor) -> None:
        """Remember these tokens."""
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
    """Keeps the entropy of the first answer token's distribution under every point."""

    def __init__(self, names: Sequence[str], points: Sequence[Weights]) -> None:
        super().__init__(names)
        self.vectors = torch.tensor([p.vector(names) for p in points])  # [P, S]
        self.entropy: Tensor | None = None  # [P]

    def read_next(self, view: View) -> None:
        """Measure the entropies."""
        for _, logits in view.chunks():
            vectors = self.vectors.to(logits[0].device)
            self.entropy = grid_entropy(logits, vectors)[:, -1].cpu()
            view.check(self.entropy.isfinite())


class PromptCollectors:
    """The readers of several policies, side by side on one prompt: logits are made once.

    Args:
        readers: By the bit that marks their tokens.
    """

    def __init__(self, readers: Mapping[int, PromptCollector]) -> None:
        self.readers = dict(readers)

    def absorb(self, other: PromptCollectors) -> None:
        """Take over what others have seen of the beginning of the same prompt."""
        for bit, reader in self.readers.items():
            reader.absorb(other.readers[bit])

    def read(self, view: View, targets: Tensor, shown: Tensor) -> None:
        """Show each reader its tokens of a run of prompt tokens.

        Args:
            view: N positions.
            targets: ``[N]``, the prompt tokens that follow those positions.
            shown: ``[N]`` (on the CPU) the bits of the readers that are shown each of them.
        """
        at_once: list[tuple[int, PromptCollector]] = []
        for bit, reader in self.readers.items():
            if reader.later:
                _show(reader, bit, view, targets, shown, slice(0, len(targets)), ())
            else:
                at_once.append((bit, reader))
        if at_once:
            for where, logits in view.chunks():
                for bit, reader in at_once:
                    _show(reader, bit, view, targets, shown, where, logits)

    def read_next(self, view: View) -> None:
        """Show all of them the last position of the prompt."""
        for reader in self.readers.values():
            reader.read_next(view)


def _show(
    reader: PromptCollector,
    bit: int,
    view: View,
    targets: Tensor,
    shown: Tensor,
    where: slice,
    logits: Sequence[Tensor],
) -> None:
    """Show one reader what is its own of the positions ``where``."""
    keep = (shown[where] & bit).bool()
    if bool(keep.any()):
        reader.read(view.part(where, keep, logits), targets[where][keep.to(targets.device)])


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
