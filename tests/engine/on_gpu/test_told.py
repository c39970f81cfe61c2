"""What results record of captured rounds."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.support.running import TRIO, instances, model_args
from trimix_lm_eval.engine.graph_decoder import why_eager
from trimix_lm_eval.engine.graph_round import Round
from trimix_lm_eval.engine.spec_decode import Speculation
from trimix_lm_eval.fusion.policies import base
from trimix_lm_eval.fusion.policies.gate import Gate
from trimix_lm_eval.harness.lm import TriMixLM

PROMPTS = ["The hen went to the barn", "In the", "There is a river near the inn"]


def recorded(lm, new_tokens):
    how = {"until": [], "max_gen_toks": new_tokens}
    lm.generate_until(instances("generate_until", [(p, how) for p in PROMPTS]), disable_tqdm=True)
    return lm.get_model_info()["trimix"]["runtime"]["cuda_graphs"]


@pytest.fixture
def lm(pico):
    def load(**more):
        folders = {role: pico("llama")[role] for role in TRIO}
        how = {"policy": "fixed", "speculative": 0, "batch_size": 3, "device": "cuda:0", **more}
        return TriMixLM(**model_args(folders, **how))

    return load


def test_how_many_graphs(lm):
    model = lm()
    few = recorded(model, 2)
    assert few == {"captured": 0, "reason": "no kind of decoding step was needed often enough"}
    assert recorded(model, 12) == {"captured": 3, "reason": None}
    assert recorded(lm(small_device="cuda:1"), 12) == {"captured": 3, "reason": None}


def test_why_there_are_none(lm):
    off = recorded(lm(cuda_graphs="off"), 12)
    assert off == {"captured": 0, "reason": "cuda_graphs=off"}
    model = lm()
    head = model.model.fuser.ensemble.sources[0].model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.to("cuda:1"), requires_grad=False)
    assert why_eager(model.model.fuser) == "spread over several devices: large_ins"


def test_what_refused_to_be_captured(lm, monkeypatch):
    draft = Round._draft

    def waiting(self):
        if torch.cuda.is_current_stream_capturing():  # or it would have been noticed before
            torch.zeros(1, device="cuda:0").item()
        draft(self)

    monkeypatch.setattr(Round, "_draft", waiting)
    tried = []
    capture = Round._capture
    monkeypatch.setattr(Round, "_capture", lambda self: (tried.append(1), capture(self)))
    model = lm()
    for _ in range(2):
        found = recorded(model, 12)
        assert found["captured"] == 0
        assert "not permitted when stream is capturing" in found["reason"]
    # PyTorch leaves streams and allocator as they are where a capture fails.
    assert len(tried) == 1 and torch.cuda.current_stream().cuda_stream == 0


def test_a_capture_that_fails_is_the_last_of_all_kinds(lm, monkeypatch):
    """Of those, too, that were under way when it failed."""
    draft, capture, tried = Round._draft, Round._capture, []

    def waiting(self):
        if torch.cuda.is_current_stream_capturing():
            torch.zeros(1, device="cuda:0").item()
        draft(self)

    monkeypatch.setattr(Round, "_draft", waiting)
    monkeypatch.setattr(Round, "_capture", lambda self: (tried.append(self.kind), capture(self)))
    lengths = itertools.cycle([1, 0])
    monkeypatch.setattr(Speculation, "draft_length", lambda self, *_: next(lengths))
    assert recorded(lm(), 20)["captured"] == 0
    assert len(tried) == 1


def test_somebody_elses_policy_that_waits(lm, monkeypatch):
    """It may look at a number: that is no error of its own, which would end the run."""
    weigh = Gate.token_weights

    def waiting(self, logits, names):
        logits[0].sum().item()
        return weigh(self, logits, names)

    model = lm(policy="gate")
    monkeypatch.setattr(Gate, "token_weights", waiting)
    monkeypatch.delitem(base._REGISTRY, "gate")
    monkeypatch.setattr(Round, "_capture", None)  # which is not even tried
    found = recorded(model, 12)
    assert found["captured"] == 0
    assert "the host waits for cuda:0" in found["reason"]
