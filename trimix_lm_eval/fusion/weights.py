"""The points of the fusion: which source gets which weight. Numbers only, no tensors.

    L = L_sb + alpha (L_li - L_lb) + beta (L_sc - L_sb) + gamma (L_lb - L_sb)

What reads results imports this without importing torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trimix_lm_eval.utils.errors import TrimixError

#: The four roles, in the order in which every weight vector lists them.
SOURCES = ("large_ins", "small_cpt", "small_base", "large_base")


#: The largest absolute value of alpha, beta and gamma. Logits are some tens to hundreds, and are
#: fused in fp32, which has 7 digits: beyond this the fused logits are wrong by more than 0.01, and
#: from 1e36 on they are infinite or NaN.
LARGEST = 1000.0


class Weights(NamedTuple):
    """One point of the fusion.

    Attributes:
        alpha: Task benefit: how much of large_ins.
        beta: Language benefit: how much of small_cpt.
        gamma: Scaling benefit: how much of large_base over small_base; None means alpha.
    """

    alpha: float
    beta: float
    gamma: float | None = None

    def by_source(self) -> dict[str, float]:
        """The weight of each source; they sum to 1 and may be negative (small_base)."""
        gamma = self.alpha if self.gamma is None else self.gamma
        weights = {
            "large_ins": self.alpha,
            "small_cpt": self.beta,
            "small_base": 1.0 - self.beta - gamma,
            "large_base": gamma - self.alpha,
        }
        # 1 - 0.9 - 0.1 leaves 3e-17 in floating point: that source must count as switched off.
        return {name: 0.0 if abs(w) < 1e-12 else w for name, w in weights.items()}

    @classmethod
    def of_sources(cls, shares: Mapping[str, float]) -> Weights:
        """The point that gives each source its share; they sum to 1.

        Args:
            shares: By source. One that is not named has weight 0, exactly.
        """
        alpha, beta = shares.get("large_ins", 0.0), shares.get("small_cpt", 0.0)
        gamma = alpha + shares["large_base"] if "large_base" in shares else None
        if "small_base" not in shares:  # its weight is what the others leave
            beta = 1.0 - (alpha if gamma is None else gamma)
        return cls(alpha, beta, gamma)

    def vector(self, names: Sequence[str]) -> list[float]:
        """The weights in the order of ``names``.

        Raises:
            TrimixError: A source outside ``names`` has a weight other than 0.
        """
        return list(source_vector(self, tuple(names)))

    def in_range(self) -> bool:
        """Whether alpha, beta and gamma are numbers, none larger than `LARGEST`."""
        gamma = 0.0 if self.gamma is None else self.gamma
        try:
            return all(abs(x) <= LARGEST for x in (self.alpha, self.beta, gamma))
        except TypeError:  # what a policy of somebody else's put in their place
            return False

    def label(self) -> str:
        """A short text for tables and keys, e.g. ``0.1:0.9`` or ``0.1:0.9:0.3``."""
        return ":".join(f"{x:g}" for x in self if x is not None)


@functools.lru_cache(maxsize=4096)
def source_vector(point: Weights, names: tuple[str, ...]) -> tuple[float, ...]:
    """`Weights.vector`, remembered: each prompt asks for all points of a grid.

    Raises:
        TrimixError: A source outside ``names`` has a weight other than 0, or one is out of range.
    """
    if not point.in_range():
        raise TrimixError(
            f"{point}: they are not all numbers of {LARGEST:g} at most, which fp32 can fuse.",
            "choose another point",
        )
    weights = point.by_source()
    for name, weight in weights.items():
        if weight and name not in names:
            raise TrimixError(
                f"The point {point.label()} gives {name} the weight {weight:g}, "
                f"but {name} is not there.",
                f"name the model with {name}=<Hub id or folder>, or choose another point",
            )
    return tuple(weights[name] for name in names)


def parse(label: object) -> Weights | None:
    """What `Weights.label` wrote; None if it is something else."""
    try:
        numbers = [float(part) for part in str(label).split(":")]
    except ValueError:
        return None
    if len(numbers) not in (2, 3) or not all(map(math.isfinite, numbers)):
        return None
    return Weights(*numbers)


def axes(points: Sequence[Weights]) -> tuple[list[float], list[float]]:
    """The values of alpha and of beta whose combinations are a grid, ascending.

    Raises:
        TrimixError: The points are not all combinations of at least three values of each.
    """
    alphas = sorted({point.alpha for point in points})
    betas = sorted({point.beta for point in points})
    whole = {Weights(alpha, beta) for alpha in alphas for beta in betas}
    if set(points) != whole or min(len(alphas), len(betas)) < 3:
        raise TrimixError(
            "refine=quadratic needs a grid of all combinations of three or more values of alpha "
            "and of beta, without gamma.",
            "leave out grid=, or leave out refine=",
        )
    return alphas, betas


#: alpha and beta of the released code: 36 points.
PAPER_VALUES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
PAPER_GRID = tuple(Weights(a, b) for a in PAPER_VALUES for b in PAPER_VALUES)

#: What is used where there is nothing to choose from: the point that the authors ship most often.
PRIOR = Weights(0.1, 0.9)
