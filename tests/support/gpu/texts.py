"""Texts that tests on the simulated GPU have written, there and on the CPU."""

from __future__ import annotations

from typing import Any

from trimix_lm_eval.engine.sampler import SamplingParams

PROMPTS = [
    "The hen went to the barn",
    "In the",
    "There is a river near the inn, and then the heron",
    "ths",
    "the inn",
    "བོད་",
    "\n",
]
#: Drafts of a round, where a test does not say otherwise.
K = 4


def jobs_of(**how: Any) -> list[tuple[str, SamplingParams]]:
    """All prompts, each continued by 14 tokens."""
    return [
        (text, SamplingParams(max_new_tokens=14, seed=i, **how)) for i, text in enumerate(PROMPTS)
    ]


def written(model: Any, jobs: Any) -> dict[tuple[int, int], tuple[str, str]]:
    """What a model writes, and why each text ends, by request and fusion config."""
    return {(i, c): (out.text, out.finish_reason) for i, c, out in model.iter_generate(jobs)}
