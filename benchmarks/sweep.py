"""What all 36 points of the paper's grid cost at once, beside a run of each.

    python benchmarks/sweep.py [--json] [--trio cpu] [--batch 16]

One side is what `trimix sweep` does: the sources run once for all points. The other runs one point
after the other as `lm_eval --model trimix` does, with drafts, shared prefixes and none but the
sources that the point needs; of the 36, ``--singles`` points spread over the grid are run, whose
mean stands for all. Loading is not counted on either side. Keys:

* ``ratio_mc``: all points at once over one point, on multiple-choice questions after one few-shot
  prompt.
* ``ratio_gen``: all points at once over 36 times one point, on texts of exactly ``--new-tokens``
  tokens after one few-shot prompt; both with the same ``batch_size``.
* ``max_abs_diff`` of log-likelihoods between the sides; ``texts_identical``: the share of the texts
  that both sides wrote alike, 1.0 in fp32.
* ``distinct_tokens``: of all points' texts, the share of the tokens that differ in what stands
  before them: what is left when equal prefixes are written once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import timing
from models import Texts, Trio, add_arguments, alone, open_trio

from trimix_lm_eval import TriMix
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.fusion.weights import PAPER_GRID
from trimix_lm_eval.loading import settings


def main(argv: list[str] | None = None) -> None:
    parser = timing.parser(__doc__, rounds=1)
    add_arguments(parser)
    parser.add_argument("--batch", type=timing.count, default=16, help="sequences that run at once")
    parser.add_argument("--shots-tokens", type=timing.count, default=1000, help="few-shot prompt")
    parser.add_argument("--question-tokens", type=timing.count, default=100)
    parser.add_argument("--questions", type=timing.count, default=8, help="multiple choice")
    parser.add_argument("--options", type=timing.count, default=4)
    parser.add_argument("--option-tokens", type=timing.count, default=10)
    parser.add_argument("--prompts", type=timing.count, default=16, help="to be continued")
    parser.add_argument("--new-tokens", type=timing.count, default=250)
    parser.add_argument("--singles", type=timing.count, default=6, help="points run one by one")
    asked = parser.parse_args(argv)
    with open_trio(asked.trio, asked.device, asked.models) as trio:
        values = measure(trio, asked)
    timing.report(values, asked)


def measure(trio: Trio, asked: argparse.Namespace) -> dict[str, Any]:
    model = load(trio, asked.batch)
    texts = Texts(trio)
    shots = texts.text(asked.shots_tokens)

    def prompts(count: int) -> list[str]:
        return [f"{shots} {texts.text(asked.question_tokens)}" for _ in range(count)]

    pairs = [
        (context, option)
        for context in prompts(asked.questions)
        for option in texts.options(asked.options, asked.option_tokens)
    ]
    jobs = [(prompt, SamplingParams(asked.new_tokens)) for prompt in prompts(asked.prompts)]
    return {**choices(model, pairs, asked), **writing(model, jobs, asked)}


def load(trio: Trio, batch: int) -> TriMix:
    """All points of the paper's grid at once."""
    variants = [
        settings.parse(
            {
                **trio._asdict(),
                "batch_size": batch,
                "policy": "fixed",
                "alpha": point.alpha,
                "beta": point.beta,
            }
        )
        for point in PAPER_GRID
    ]
    return TriMix.load_many(variants)


def singles(asked: argparse.Namespace) -> list[int]:
    """Points to run one by one: 6 of them are the diagonal of the grid."""
    last, count = len(PAPER_GRID) - 1, min(asked.singles, len(PAPER_GRID))
    return [i * last // max(count - 1, 1) for i in range(count)]


def choices(
    model: TriMix, pairs: Sequence[tuple[str, str]], asked: argparse.Namespace
) -> dict[str, Any]:
    """Multiple choice: all at once over the mean of the single runs."""
    some = singles(asked)

    def at_once() -> dict[tuple[int, int], float]:
        return {(w, i): s.log_likelihood for i, w, s in model.iter_loglikelihood(pairs)}

    def one_by_one() -> dict[tuple[int, int], float]:
        runs = {which: alone(model, which).loglikelihood(pairs) for which in some}
        return {(w, i): s.log_likelihood for w, run in runs.items() for i, s in enumerate(run)}

    sides = {"at_once": at_once, "one_by_one": one_by_one}
    spent, found = timing.alternate(sides, asked.rounds, asked.device)
    a, b = found.values()
    return {
        "ratio_mc": round(spent["at_once"] / (spent["one_by_one"] / len(some)), 4),
        "max_abs_diff": max(abs(a[key] - b[key]) for key in b),
        "seconds_mc": {name: round(time, 3) for name, time in spent.items()},
    }


def writing(
    model: TriMix, jobs: Sequence[tuple[str, SamplingParams]], asked: argparse.Namespace
) -> dict[str, Any]:
    """Generation: all at once over as many single runs."""
    some = singles(asked)

    def at_once() -> dict[tuple[int, int], str]:
        return {(w, i): text.text for i, w, text in model.iter_generate(jobs)}

    def one_by_one() -> dict[tuple[int, int], str]:
        runs = {which: alone(model, which).iter_generate(jobs) for which in some}
        return {(which, i): text.text for which, run in runs.items() for i, _, text in run}

    sides = {"at_once": at_once, "one_by_one": one_by_one}
    spent, found = timing.alternate(sides, asked.rounds, asked.device)
    a, b = found.values()
    each = spent["one_by_one"] / len(some)
    return {
        "ratio_gen": round(spent["at_once"] / (each * len(model.fuser.configs)), 4),
        "texts_identical": round(sum(a[key] == b[key] for key in b) / len(b), 4),
        "distinct_tokens": round(distinct(model, a), 4),
        "seconds_gen": {name: round(time, 3) for name, time in spent.items()},
    }


def distinct(model: TriMix, texts: dict[tuple[int, int], str]) -> float:
    """Share of the tokens that differ in what stands before them."""
    ids = {key: tuple(model.tokenizer.encode(text)) for key, text in texts.items()}
    prefixes = {(i, path[:n]) for (_, i), path in ids.items() for n in range(1, len(path) + 1)}
    return len(prefixes) / sum(len(path) for path in ids.values())


if __name__ == "__main__":
    main()
