"""How TriMix's cost grows with the number of requests, options, shots, and the batch.

    python benchmarks/scaling.py [--json] [--trio cpu] [--axes requests options]

Along each axis one quantity doubles and the others stay. ``exponent`` is the slope of log seconds
over log size (1 is linear, 0 constant), ``per_doubling`` the factor that it means. Axes:

* ``requests``: questions after one few-shot prompt, which runs once: below 1 until the questions
  outweigh it. ``requests_alone``: each with a few-shot prompt of its own: 1.
* ``options`` of a question, which share its context: below 1.
* ``shots``: length of the shared prompt: below 1, as the rest does not grow.
* ``batch``: rows per forward pass, for the same questions; ``batch_generate``: sequences at once,
  for the same prompts. Below 0 is a gain; on a CPU, which a few rows fill, there is little.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import timing
from models import Texts, Trio, add_arguments, open_trio, variant

from trimix_lm_eval import TriMix

AXES = ("requests", "requests_alone", "options", "shots", "batch", "batch_generate")


def main(argv: list[str] | None = None) -> None:
    parser = timing.parser(__doc__, rounds=3)
    add_arguments(parser)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--policy", default="ppl")
    parser.add_argument(
        "--doublings", type=timing.count, default=3, help="sizes per axis, less one"
    )
    parser.add_argument("--requests", type=timing.count, default=4, help="questions, at the least")
    parser.add_argument("--shots-tokens", type=timing.count, default=256, help="at the least")
    parser.add_argument("--question-tokens", type=timing.count, default=64)
    parser.add_argument("--options", type=timing.count, default=2, help="at the least")
    parser.add_argument("--option-tokens", type=timing.count, default=10)
    parser.add_argument("--new-tokens", type=timing.count, default=16)
    asked = parser.parse_args(argv)
    with open_trio(asked.trio, asked.device, asked.models) as trio:
        values = measure(trio, asked)
    timing.report(values, asked)


def measure(trio: Trio, asked: argparse.Namespace) -> dict[str, Any]:
    work = Work(Texts(trio), trio.load(policy=asked.policy, batch_size=4), asked)
    work.scoring()()  # warm up
    factors = [2**i for i in range(asked.doublings + 1)]
    axes = {}
    for axis in asked.axes:
        sides = {str(size): side for size, side in getattr(work, axis)(factors).items()}
        spent, _ = timing.alternate(sides, asked.rounds, asked.device)
        by_size = {int(size): time for size, time in spent.items()}
        slope = exponent(by_size)
        axes[axis] = {
            "exponent": round(slope, 3),
            "per_doubling": round(2**slope, 3),
            "seconds": {size: round(time, 4) for size, time in by_size.items()},
        }
    return axes


def exponent(by_size: dict[int, float]) -> float:
    """Slope of the line through log size and log seconds, least squares."""
    x, y = [math.log(s) for s in by_size], [math.log(t) for t in by_size.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in x)


Sides = dict[int, Callable[[], Any]]


class Work:
    """What is done at each size, by axis: every axis takes factors and gives sides by size.

    Args:
        texts: What requests are made of.
        model: Who does it.
        asked: The least sizes.
    """

    def __init__(self, texts: Texts, model: TriMix, asked: argparse.Namespace) -> None:
        self.texts, self.model, self.asked = texts, model, asked

    def scoring(
        self, requests: int = 1, options: int = 1, shots: int = 1, alone: bool = False
    ) -> partial[Any]:
        """Scoring of questions whose sizes are multiples of the least, ready to be called."""
        asked, texts = self.asked, self.texts
        length = shots * asked.shots_tokens
        shared, pairs = texts.text(length), []
        for _ in range(requests * asked.requests):
            before = texts.text(length) if alone else shared
            context = f"{before} {texts.text(asked.question_tokens)}"
            several = texts.options(options * asked.options, asked.option_tokens)
            pairs += [(context, option) for option in several]
        return partial(self.model.loglikelihood, pairs)

    def requests(self, factors: list[int]) -> Sides:
        """More questions, one few-shot prompt."""
        return {f * self.asked.requests: self.scoring(requests=f) for f in factors}

    def requests_alone(self, factors: list[int]) -> Sides:
        """More questions, each with a few-shot prompt of its own."""
        return {f * self.asked.requests: self.scoring(requests=f, alone=True) for f in factors}

    def options(self, factors: list[int]) -> Sides:
        """More options per question."""
        return {f * self.asked.options: self.scoring(options=f) for f in factors}

    def shots(self, factors: list[int]) -> Sides:
        """A longer few-shot prompt."""
        return {f * self.asked.shots_tokens: self.scoring(shots=f) for f in factors}

    def batch(self, factors: list[int]) -> Sides:
        """More rows per forward pass; at least as many questions as the largest batch has rows."""
        many = self.scoring(requests=-(-factors[-1] // self.asked.requests))
        models = {f: variant(self.model, batch_size=f) for f in factors}
        return {f: partial(model.loglikelihood, *many.args) for f, model in models.items()}

    def batch_generate(self, factors: list[int]) -> Sides:
        """More sequences at once; as many prompts as the largest batch has rows."""
        prompts = [self.texts.text(self.asked.question_tokens) for _ in range(factors[-1])]
        models = {f: variant(self.model, batch_size=f) for f in factors}
        new = self.asked.new_tokens
        return {f: partial(m.generate, prompts, max_new_tokens=new) for f, m in models.items()}


if __name__ == "__main__":
    main()
