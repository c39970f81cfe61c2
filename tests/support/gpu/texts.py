"""Texts that tests on the simulated GPU have written, there and on the CPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.support.gpu.events import watch
from trimix_lm_eval.engine.graph_decoder import GraphDecoder
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


def three_rounds(model: Any, batch_size: int) -> Counter[str]:
    """What three captured rounds of so many rows ask of the GPU, by kind of event."""
    long = [(PROMPTS[i % 7], SamplingParams(max_new_tokens=80)) for i in range(batch_size)]
    written(model, long)  # kernels that are chosen the first time
    rounds: list[int] = []
    begin = GraphDecoder.begin

    def counted(self: GraphDecoder, k: int) -> Any:
        rounds.append(len(seen.events))
        return begin(self, k)

    with pytest.MonkeyPatch.context() as patch, watch() as seen:
        patch.setattr(GraphDecoder, "begin", counted)
        written(model, long)
    # Rounds after the first two, which are not captured yet, and before a text ends.
    return Counter(event.kind for event in seen.events[rounds[4] : rounds[7]])
