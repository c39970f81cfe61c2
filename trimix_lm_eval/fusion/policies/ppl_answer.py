"""``ppl_answer``: like ``ppl``, over the answers of the exemplars in a few-shot prompt only."""

from __future__ import annotations

import dataclasses

from trimix_lm_eval.fusion.policies.base import register
from trimix_lm_eval.fusion.policies.perplexity import PromptPerplexity


@register
@dataclasses.dataclass(frozen=True)
class AnswerPerplexity(PromptPerplexity):
    """Per sample, the lowest perplexity of the answers in the few-shot exemplars only.

    Not in the paper. The prompt's last line is the cue (``Answer:``); in every earlier block the
    text after that cue is an answer. Honest: exemplars come from the training split. Asks which
    point solves the task, not which one likes the language; without exemplars it is ``ppl``.
    """

    name = "ppl_answer"
    honesty = "needs_exemplars"
    honest_when = (
        "if exemplars come from another split; they must be separated by a blank line and have the "
        "prompt's last line, e.g. `Answer:`, before each answer; else it is `ppl`, with a warning"
    )
    cost = "as `ppl`"
    answers_only = True
    prompt_nll = False
