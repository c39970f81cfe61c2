"""What scoring multiple-choice questions costs, beside the large model alone and the released way.

    python benchmarks/scoring.py [--json] [--trio cpu] [--option-tokens 10]

Every question has the same few-shot prompt before it, as in a task. Keys:

* ``ratio_vs_hf_large``: TriMix with fixed weights over lm-eval's ``hf`` on large_ins alone, at the
  same batch size, for all questions.
* ``ratio_vs_released``: TriMix with policy=ppl, choice included, over the released algorithm, per
  question. The released side is run once, on ``--released-questions`` of the questions.
* ``max_abs_diff``: of log-likelihoods, TriMix against the released algorithm on those questions,
  with fixed and with chosen weights; ``same_choice``: whether both chose the same points.
* ``tokens_run_vs_distinct``: tokens that TriMix ran through its sources over the tokens that differ
  in what stands before them, which is the least that must be run (padding counts as run).
* ``tokens_run_vs_distinct_uneven``, ``_options``, ``_contexts``, ``_repeated`` and ``_task``: the
  same for requests that are harder to share, see `cases.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import timing
from cases import CASES, tokens_run_vs_distinct
from counting import counting, distinct_tokens
from lm_eval.api.instance import Instance
from models import Texts, Trio, add_arguments, open_trio
from released import Released

from trimix_lm_eval.fusion.weights import PRIOR, Weights


class Question(NamedTuple):
    """A context and its options, each with the space before it."""

    context: str
    options: list[str]


def main(argv: list[str] | None = None) -> None:
    parser = timing.parser(__doc__, rounds=3)
    add_arguments(parser)
    parser.add_argument("--questions", type=timing.count, default=8)
    parser.add_argument(
        "--shots-tokens", type=timing.count, default=1500, help="of the few-shot prompt"
    )
    parser.add_argument("--question-tokens", type=timing.count, default=200)
    parser.add_argument("--options", type=timing.count, default=4)
    parser.add_argument("--option-tokens", type=timing.count, default=10, help="1 is a letter")
    parser.add_argument("--batch", type=timing.count, default=1, help="of TriMix and of hf")
    parser.add_argument("--released-questions", type=timing.count, default=1)
    parser.add_argument(
        "--no-cases", dest="cases", action="store_false", help="leave out the requests of cases.py"
    )
    asked = parser.parse_args(argv)
    with open_trio(asked.trio, asked.device, asked.models) as trio:
        values = measure(trio, asked)
    timing.report(values, asked)


def questions(trio: Trio, asked: Any) -> list[Question]:
    """Questions after one few-shot prompt; single-token options are the same for all."""
    texts = Texts(trio)
    shots = texts.text(asked.shots_tokens)
    letters = texts.options(asked.options, 1)
    made = []
    for _ in range(asked.questions):
        context = f"{shots} {texts.text(asked.question_tokens)}"
        several = asked.option_tokens > 1
        options = texts.options(asked.options, asked.option_tokens) if several else letters
        made.append(Question(context, options))
    return made


def pairs(some: Sequence[Question]) -> list[tuple[str, str]]:
    """(context, option) of all options."""
    return [(question.context, option) for question in some for option in question.options]


def measure(trio: Trio, asked: Any) -> dict[str, Any]:
    asking = questions(trio, asked)
    todo, few = pairs(asking), asking[: asked.released_questions]
    fixed = trio.load(policy="fixed", batch_size=asked.batch)
    choosing = trio.load(policy="ppl", batch_size=asked.batch)
    hf, released = trio.load_hf(asked.batch), Released(choosing)
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(todo)]

    with counting(fixed) as count:
        fixed.loglikelihood(todo)  # warms up, too
    least = distinct_tokens(fixed, todo) * len(fixed.fuser.ensemble.sources)
    spent, scores = timing.alternate(
        {
            "hf_large": lambda: hf.loglikelihood(requests, disable_tqdm=True),
            "fixed": lambda: fixed.loglikelihood(todo),
            "ppl": lambda: choosing.loglikelihood(todo),
        },
        asked.rounds,
        asked.device,
    )
    spent_released, plain = timing.seconds(lambda: by_released(released, few), asked.device)
    cost = {name: time / len(asking) for name, time in spent.items()}
    cost["released"] = spent_released / len(few)
    at_fixed = by_released(released, few, PRIOR)
    return {
        "ratio_vs_hf_large": round(cost["fixed"] / cost["hf_large"], 4),
        "ratio_vs_released": round(cost["ppl"] / cost["released"], 4),
        "ratio_ppl_vs_hf_large": round(cost["ppl"] / cost["hf_large"], 4),
        "max_abs_diff": max(
            abs(score.log_likelihood - expected.log_likelihood)
            for ours, theirs in ((scores["fixed"], at_fixed), (scores["ppl"], plain))
            for score, expected in zip(ours, theirs, strict=False)  # theirs are the first few
        ),
        "same_choice": all(
            score.choice.weights == expected.weights
            for score, expected in zip(scores["ppl"], plain, strict=False)
        ),
        "tokens_run_vs_distinct": round(count.tokens / least, 3),
        **{
            f"tokens_run_vs_distinct_{name}": tokens_run_vs_distinct(trio, name)
            for name in CASES
            if asked.cases
        },
        "seconds_per_question": {name: round(time, 4) for name, time in cost.items()},
    }


class Plain(NamedTuple):
    """What the released algorithm makes of an option."""

    weights: Weights
    log_likelihood: float


def by_released(
    released: Released, some: Sequence[Question], point: Weights | None = None
) -> list[Plain]:
    """Choose (unless the point is given), then score, question by question."""
    made = []
    for context, options in some:
        weights = point or released.choose(context)
        made += [Plain(weights, released.score(context, o, weights)) for o in options]
    return made


if __name__ == "__main__":
    main()
