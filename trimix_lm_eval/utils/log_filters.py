"""Two messages of lm-eval that tell our users nothing, each kept out of the log by its exact text.

They are said before any code of ours could keep lm-eval from saying them. Whatever else lm-eval
says passes, and so do these two about other people's tasks and models; a message that lm-eval words
anew is seen again.
"""

from __future__ import annotations

import logging
import sys

_CUSTOM_KWARGS = (
    ": Custom kwargs can be passed to `--metadata` in console (as json string) or to the "
    "TaskManager.\nFor example --metadata='{\"max_seq_lengths\":[4096, 8192]}'. For details see "
    "task Readme."
)
_CHAT_TEMPLATE = (
    " appears to be an instruct or chat variant but chat template is not applied. Recommend "
    "setting `apply_chat_template` (optionally `fewshot_as_multiturn`)."
)


def not_about_our_loaders(record: logging.LogRecord) -> bool:
    """Drop the hint at arguments of a task's loader, if the task is ours.

    lm-eval gives it for every task that loads its data by a function (``custom_dataset``), with an
    argument of one of its own benchmarks. Ours load by a function since relative paths of data
    files would be looked up in the current folder; what they take is in their README, and an
    argument that they do not take is an error that names those they do.
    """
    message = record.getMessage()
    return not (message.startswith("trimix_") and message.endswith(_CUSTOM_KWARGS))


def not_about_our_prompts(record: logging.LogRecord) -> bool:
    """Drop the advice to apply a chat template, if it is given about our model.

    lm-eval gives it if "inst" or "chat" occurs anywhere in the model's arguments. A fusion is not
    to follow it: the small models have no chat template, so the protocol has plain text continued,
    and all models read the same text.
    """
    message = " ".join(record.getMessage().split())  # it comes wrapped into lines
    advice = message.startswith("pretrained=") and message.endswith(_CHAT_TEMPLATE)
    return not (advice and _our_model_is_asked())


def _our_model_is_asked() -> bool:
    """Whether the call of `simple_evaluate` that is logging is one for ``--model trimix``.

    The message does not name the kind of model, and the model is not made yet; only the call knows.
    """
    frame = sys._getframe()
    while frame.f_code.co_name != "simple_evaluate":
        if frame.f_back is None:
            return False
        frame = frame.f_back
    model = frame.f_locals.get("model")
    return model == "trimix" or type(model).__module__.startswith("trimix_lm_eval.")


def install() -> None:
    """Add the filters to the loggers of lm-eval that they belong to; again makes no difference."""
    logging.getLogger("lm_eval.api.task").addFilter(not_about_our_loaders)
    logging.getLogger("lm_eval.evaluator").addFilter(not_about_our_prompts)
