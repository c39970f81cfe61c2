"""Answers side by side: what each model writes alone, what they write together, and whose it is.

Shown is the first question of a task that TriMix has right and all three models alone have wrong,
and how many there are of that kind and of the other: a choice of examples proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import table

SHOWN = ("follow", "say")  # tasks of which an answer is shown
ALONE = ("large_ins", "small_cpt", "small_base")


@dataclass(frozen=True)
class Answers:
    """One question.

    Attributes:
        task: Short name.
        question: The prompt without its exemplars.
        answer: The right one.
        alone: By model, what it writes.
        fused: What they write together, in pieces with the source that has carried each; None
            where none speaks for it.
        won: Questions that TriMix has right, and no model alone.
        lost: Questions that all models have right alone, and TriMix has not.
        n: All questions of the task.
    """

    task: str
    question: str
    answer: str
    alone: dict[str, str]
    fused: list[tuple[str, str | None]]
    won: int
    lost: int
    n: int


def examples(runs: list[Any]) -> list[Answers]:
    """Finds one question of each task, and explains the answer; a task without one is left out."""
    from trimix_lm_eval import TriMix

    found = []
    model = None
    for task in (f"trimix_demo_{name}" for name in SHOWN):
        right = table.right(runs, task)
        fused, alone = right["ppl"], [right[name] for name in ALONE]
        won = [i for i, ok in enumerate(fused) if ok and not any(one[i] for one in alone)]
        lost = [i for i, ok in enumerate(fused) if not ok and all(one[i] for one in alone)]
        if not won:
            continue
        model = model or TriMix.from_pretrained("demo", policy="ppl")
        samples = {str(run.policy): run.samples(task)[won[0]] for run in runs}
        found.append(_explained(model, task, samples, len(won), len(lost), len(fused)))
    return found


def _explained(
    model: Any, task: str, samples: dict[str, Any], won: int, lost: int, n: int
) -> Answers:
    from trimix_lm_eval.analysis.explain import explain
    from trimix_lm_eval.analysis.explain.page import whose
    from trimix_lm_eval.engine.sampler import SamplingParams

    sample = samples["ppl"]
    prompt, how = sample["arguments"]["gen_args_0"].values()
    params = SamplingParams(max_new_tokens=how["max_gen_toks"], stop=tuple(how["until"]))
    explained = explain(model, prompt, params)
    pieces = [(group.text, whose(explained, group)) for group in explained.groups]
    pieces[0] = (pieces[0][0].lstrip(), pieces[0][1])
    return Answers(
        task.removeprefix("trimix_demo_"),
        sample["doc"]["prompt"],
        sample["doc"]["answer"],
        {name: samples[name]["resps"][0][0].strip() for name in ALONE},
        pieces[:-1] if pieces[-1][0].isspace() else pieces,  # the end of the line
        won,
        lost,
        n,
    )
