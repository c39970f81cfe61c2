"""``ppl_task``: per task, the point under which some of its prompts have the lowest perplexity."""

from __future__ import annotations

import dataclasses
from functools import partial

from trimix_lm_eval.fusion.policies.base import register
from trimix_lm_eval.fusion.policies.perplexity import PromptPerplexity
from trimix_lm_eval.utils.options import option
from trimix_lm_eval.utils.validation import whole


@register
@dataclasses.dataclass(frozen=True)
class TaskPerplexity(PromptPerplexity):
    """Per task, the point with the lowest mean NLL over at most `prompts` prompts.

    What the released code does (it reads 50 prompts). Honest: prompts only. The prompts are drawn
    with the run's seed, whatever the order of the requests, and the point is stored, so that a
    resumed run keeps it.
    """

    name = "ppl_task"
    scope = "task"
    honest_when = "always"
    cost = (
        "as `ppl` for those prompts, which are run before the others and then not again (once more "
        "where their caches take over 2 GiB, or memory runs out)"
    )
    prompt_nll = False

    prompts: int = option(
        50,
        "whole number >= 1",
        "At most so many prompts are read, drawn by seed.",
        partial(whole, least=1),
    )

    @property
    def task_prompts(self) -> int:
        """At most so many."""
        return self.prompts
