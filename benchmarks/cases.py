"""Requests that have much in common: what scoring them runs, beside the least that must be run.

Counts, so that they are the same on every machine and for every model; `scoring.py` reports them.

* ``uneven``: 16 prompts of 20 to 400 tokens after a shared block of 700, at batch 16. What is run
  beyond the least is padding.
* ``options``: options of 100 tokens of which the first 60 are common to all of a question.
* ``contexts``: options that differ at the end of their contexts (as in WinoGrande), under
  policy=ppl, whose choice is made by what the contexts have in common.
* ``repeated``: contexts of which each occurs in several questions, under policy=ppl.
* ``task``: prompts under policy=ppl_task, all of which are read for the choice and then scored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from counting import counting, distinct_tokens
from models import Texts, Trio

from trimix_lm_eval import TriMix


class Case(NamedTuple):
    """Requests, and how they are scored.

    Attributes:
        policy: The policy that chooses their weights.
        batch: Rows per forward pass.
        pairs: (context, option).
        questions: What each pair is an option of; None: a question is a context.
    """

    policy: str
    batch: int
    pairs: list[tuple[str, str]]
    questions: list[int] | None = None


def uneven(texts: Texts, block: int = 700) -> Case:
    """Prompts of 20 to 400 tokens, evenly spread, in any order."""
    shots = texts.text(block)
    lengths = [20 + 380 * i // 15 for i in range(16)]
    texts.random.shuffle(lengths)
    contexts = [f"{shots} {texts.text(length)}" for length in lengths]
    return Case("fixed", 16, [(c, o) for c in contexts for o in texts.options(4, 1)])


def options(texts: Texts) -> Case:
    """Options with 60 common tokens of 100."""
    pairs = []
    for _ in range(8):
        context, common = texts.text(120), texts.text(60)
        pairs += [(context, f" {common}{option}") for option in texts.options(4, 40)]
    return Case("fixed", 4, pairs)


def contexts(texts: Texts) -> Case:
    """Two contexts a question, which differ in their last tokens; the continuation is one."""
    pairs, questions = [], []
    for question in range(16):
        common, option = texts.text(50 + 5 * question), texts.options(1, 10)[0]
        pairs += [(f"{common}{end}", option) for end in texts.options(2, 3)]
        questions += [question] * 2
    return Case("ppl", 8, pairs, questions)


def repeated(texts: Texts) -> Case:
    """Each context in three questions, with others each time."""
    some = [texts.text(80 + 5 * i) for i in range(8)]
    pairs = [
        (context, option) for _ in range(3) for context in some for option in texts.options(2, 5)
    ]
    return Case("ppl", 8, pairs, [i // 2 for i in range(len(pairs))])


def task(texts: Texts) -> Case:
    """Prompts after a shared block."""
    shots = texts.text(300)
    prompts = [f"{shots} {texts.text(60 + 2 * i)}" for i in range(50)]
    return Case("ppl_task", 8, [(p, o) for p in prompts for o in texts.options(2, 4)])


CASES: dict[str, Callable[[Texts], Case]] = {
    "uneven": uneven,
    "options": options,
    "contexts": contexts,
    "repeated": repeated,
    "task": task,
}


def tokens_run_vs_distinct(trio: Trio, name: str) -> float:
    """Score a case; the tokens that were run over the least."""
    case = CASES[name](Texts(trio, seed=1))
    model = trio.load(policy=case.policy, batch_size=case.batch)
    return ratio(model, case)


def ratio(model: TriMix, case: Case) -> float:
    """Tokens run over distinct tokens, padding and the choice of weights included."""
    points = None
    with counting(model) as count:
        if case.policy == "ppl_task":
            chosen = model.choose_for_task(
                list(dict.fromkeys(context for context, _ in case.pairs))
            )
            points = [(chosen.weights,)] * len(case.pairs)
        for _ in model.iter_loglikelihood(case.pairs, points, case.questions):
            pass
    least = distinct_tokens(model, case.pairs) * len(model.fuser.ensemble.sources)
    return round(count.tokens / least, 3)
