"""How a metric's numbers are written: shares in percent, and no more digits than they carry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

#: Metrics from 0 to 1. Some benchmarks give metrics of these names from 0 to 100.
_SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match", "f1", "rouge_l", "score")
_POINTS = ("bleu", "chrf", "chrf++", "ter")


class Scale(NamedTuple):
    """How to write the numbers of a column: what to multiply with, digits, and ``%`` or no unit."""

    factor: float
    decimals: int
    unit: str

    def text(self, value: float) -> str:
        """A value, without its unit."""
        return f"{value * self.factor:.{self.decimals}f}"

    def signed(self, value: float) -> str:
        """A difference, with its sign."""
        return f"{value * self.factor:+.{self.decimals}f}".replace("-", "\N{MINUS SIGN}")


def scale(metric: str, values: Iterable[float]) -> Scale:
    """The scale of a column by its metric and all of its values."""
    largest = max((abs(value) for value in values), default=0.0)
    if metric in _SHARES and largest <= 1:
        return Scale(100, 1, "%")
    if metric in _POINTS or metric in _SHARES:
        return Scale(1, 1, "")
    return Scale(1, 3 if largest < 10 else 2 if largest < 1000 else 0, "")


def minus(value: float) -> str:
    """A correlation, with a minus sign in place of a hyphen."""
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def p_value(p: float) -> str:
    """A p-value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def stars(p: float) -> str:
    """Marks for 0.05, 0.01 and 0.001."""
    return "*" * sum(p < level for level in (0.05, 0.01, 0.001))
