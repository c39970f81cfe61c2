"""Two messages of lm-eval are dropped, where they are about our tasks and our model alone."""

import inspect
import logging

import pytest
from lm_eval import evaluator
from lm_eval.api import task as lm_eval_task
from lm_eval.utils import wrap_text

from trimix_lm_eval.utils import log_filters

KWARGS = log_filters._CUSTOM_KWARGS
ADVICE = "pretrained=Qwen2.5-7B-Instruct" + log_filters._CHAT_TEMPLATE


@pytest.fixture
def seen(monkeypatch):
    """Messages that pass the filters."""
    messages = []

    class Handler(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    log_filters.install()
    log_filters.install()
    handler = Handler()
    for name in ("lm_eval.api.task", "lm_eval.evaluator"):
        logger = logging.getLogger(name)
        assert sum(f in vars(log_filters).values() for f in logger.filters) == 1
        monkeypatch.setattr(logger, "handlers", [handler])
        monkeypatch.setattr(logger, "propagate", False)
    return messages


def advise(message, model):
    """Logs as lm-eval's function of this name does."""

    def simple_evaluate(model):
        logging.getLogger("lm_eval.evaluator").warning(wrap_text(message))

    simple_evaluate(model)


def test_lm_eval_still_says_these_words():
    def source(module):
        return "".join(inspect.getsource(module).split())

    for part in ("Custom kwargs can be passed to `--metadata` in console", "For details see task"):
        assert part.replace(" ", "") in source(lm_eval_task)
    assert "".join(log_filters._CHAT_TEMPLATE.split()) in source(evaluator)


def test_the_hint_at_a_loaders_arguments_goes_for_our_tasks_only(seen):
    logger = logging.getLogger("lm_eval.api.task")
    logger.warning("trimix_belebele_bod_Tibt" + KWARGS)
    logger.warning("ruler_vt" + KWARGS)
    logger.warning("trimix_demo_finish: something else")
    assert seen == ["ruler_vt" + KWARGS, "trimix_demo_finish: something else"]


def test_the_advice_to_apply_a_chat_template_goes_for_our_model_only(seen):
    advise(ADVICE, "trimix")
    advise(ADVICE, type("SweepLM", (), {"__module__": "trimix_lm_eval.sweep.lm"})())
    assert seen == []
    advise(ADVICE, "hf")
    advise("pretrained=x is something else.", "trimix")
    logging.getLogger("lm_eval.evaluator").warning(ADVICE)
    assert len(seen) == 3
