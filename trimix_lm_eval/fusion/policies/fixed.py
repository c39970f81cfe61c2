"""One point for the whole run: ``fixed``, and the four points that have names of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from trimix_lm_eval.fusion.policies.base import Policy, ours, register, registered
from trimix_lm_eval.fusion.weights import LARGEST, Weights
from trimix_lm_eval.utils.options import option
from trimix_lm_eval.utils.validation import number

_TYPE = f"number from {-LARGEST:g} to {LARGEST:g}"
_weight = partial(
    number, least=-LARGEST, most=LARGEST, hint=": beyond, fp32 is too coarse for the fused logits"
)


@register
@dataclasses.dataclass(frozen=True)
class Fixed(Policy):
    """One point for the whole run: L = alpha L_li + beta L_sc + (1 - alpha - beta) L_sb.

    With large_base given, gamma may differ from alpha (the paper's full equation). Honest when the
    point was chosen on other data than the test set, e.g. the weights that the authors ship.
    """

    name = "fixed"
    honesty = "label_free"
    honest_when = (
        "if the numbers come from other data; the authors ship (0.1, 0.9) or (0.1, 1.0) for 49 of "
        "their 56 settings"
    )
    cost = "the sources whose weight is not 0"

    alpha: float = option(0.1, _TYPE, "Weight of large_ins, the task benefit.", _weight)
    beta: float = option(0.9, _TYPE, "Weight of small_cpt, the language benefit.", _weight)
    gamma: float | None = option(
        None,
        _TYPE,
        "Weight of large_base over small_base, the scaling benefit; α if you give none.",
        _weight,
    )

    def points(self) -> tuple[Weights, ...]:
        """The one point."""
        return (Weights(self.alpha, self.beta, self.gamma),)

    @classmethod
    def differing(cls, options: Mapping[str, Any]) -> list[str]:
        """Nothing: tables call it by its point."""
        return []


@dataclasses.dataclass(frozen=True)
class Preset(Policy):
    """A point with a name, and no options."""

    point: ClassVar[Weights]
    honesty = "label_free"
    honest_when = "always"
    cost = Fixed.cost

    def points(self) -> tuple[Weights, ...]:
        """The one point."""
        return (self.point,)


@register
@dataclasses.dataclass(frozen=True)
class LargeIns(Preset):
    """The large instruction-tuned model alone: the point (1, 0)."""

    name = label = "large_ins"
    point = Weights(1.0, 0.0)


@register
@dataclasses.dataclass(frozen=True)
class SmallCpt(Preset):
    """The continually pretrained model alone: the point (0, 1)."""

    name = label = "small_cpt"
    point = Weights(0.0, 1.0)


@register
@dataclasses.dataclass(frozen=True)
class SmallBase(Preset):
    """The small base model alone: the point (0, 0)."""

    name = label = "small_base"
    point = Weights(0.0, 0.0)


@register
@dataclasses.dataclass(frozen=True)
class ProxyTuning(Preset):
    """Proxy Tuning (Liu et al. 2024), L_li + (L_sc - L_sb): the point (1, 1)."""

    name = "proxy_tuning"
    label = "Proxy Tuning"
    point = Weights(1.0, 1.0)
    url = "https://arxiv.org/abs/2401.08565"


def point_of(name: str) -> Weights | None:
    """The point that has this name of its own, or None."""
    cls = ours(name)
    return cls.point if cls and issubclass(cls, Preset) else None


def name_of(point: Weights) -> str:
    """What a point is called: by its own name if it has one, else ``fixed``."""
    named = (cls for cls in registered() if issubclass(cls, Preset) and cls.point == point)
    return next((cls.name for cls in named), Fixed.name)
