"""How many of our modules a request enters between lm-eval's call and its answer.

The progress bar, which watches requests and is no part of their way, is switched off.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

import trimix_lm_eval
from tests.support.running import instances, model_args
from trimix_lm_eval.harness.lm import TriMixLM

PACKAGE = Path(trimix_lm_eval.__file__).parent
#: A newcomer who follows a request opens at most so many files.
MOST = 12


def entered(call):
    """The files of ours in which a function runs during a call, callbacks included."""
    found = set()

    def watch(frame, event, _):
        if event == "call":
            found.add(frame.f_code.co_filename)

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    ours = {str(Path(f).relative_to(PACKAGE)) for f in found if Path(f).is_relative_to(PACKAGE)}
    return sorted(ours)


@pytest.fixture(scope="module", params=["ppl", "ent", "gate", "fixed"])
def lm(pico, request):
    lm = TriMixLM(**model_args(pico("llama"), policy=request.param, speculative=3, batch_size=2))
    # What only the first call does, such as compiling a kernel, is no part of a request's way.
    lm.loglikelihood(instances("loglikelihood", [("x", " y")]), disable_tqdm=True)
    return lm


def test_a_generation_request(lm):
    asked = instances("generate_until", [("The hen went to", {"until": [], "max_gen_toks": 9})])
    modules = entered(lambda: lm.generate_until(asked, disable_tqdm=True))
    assert lm.model.speculation.stats.num_draft_tokens > 0
    assert "engine/spec_decode.py" in modules
    assert len(modules) <= MOST, "\n".join(modules)


def test_a_scoring_request(lm):
    pairs = [("The hen went to", f" the {what} there") for what in ("barn", "inn")]
    asked = instances("loglikelihood", pairs)
    modules = entered(lambda: lm.loglikelihood(asked, disable_tqdm=True))
    assert "engine/scorer.py" in modules
    assert len(modules) <= MOST, "\n".join(modules)
