"""How many of our modules a request enters between lm-eval's call and its answer.

The progress bar, which watches requests and is no part of their way, is switched off.
"""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

import pytest

import trimix_lm_eval
from tests.support.running import ROOT, instances, model_args
from trimix_lm_eval.harness.lm import TriMixLM

PACKAGE = Path(trimix_lm_eval.__file__).parent
#: A newcomer who follows a request opens at most so many files.
MOST = 12


def entered(call):
    """The files of ours in which a function runs during a call, in order of first entry."""
    found: dict[str, None] = {}

    def watch(frame, event, _):
        if event == "call":
            found.setdefault(frame.f_code.co_filename)

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return [
        Path(f).relative_to(PACKAGE).as_posix() for f in found if Path(f).is_relative_to(PACKAGE)
    ]


def listed(heading):
    """The files that the table under a heading of docs/architecture.md has, in its order."""
    section = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split(heading)[1]
    files = re.findall(r"^\| \d+ \| `([^`]+)`", section.split("\n## ")[0], flags=re.M)
    return [file.replace("policies/…", "policies/perplexity.py") for file in files]


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
    if lm.policy.name == "ppl":
        assert modules == listed("## A generation request")


def test_a_scoring_request(lm):
    pairs = [("The hen went to", f" the {what} there") for what in ("barn", "inn")]
    asked = instances("loglikelihood", pairs)
    modules = entered(lambda: lm.loglikelihood(asked, disable_tqdm=True))
    assert "engine/scorer.py" in modules
    assert len(modules) <= MOST, "\n".join(modules)
    if lm.policy.name == "ppl":
        assert modules == listed("## A loglikelihood request")
