"""Sources on two GPUs: a graph for each, few copies between them, the texts of one GPU."""

from __future__ import annotations

import pytest

from tests.support.gpu.texts import jobs_of, three_rounds, written
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.config import FusionConfig
from trimix_lm_eval.fusion.weights import PAPER_GRID

SMALL = (("small_device", "cuda:1"),)
LARGE = (("large_device", "cuda:1"),)


@pytest.mark.parametrize(("devices", "policy"), [(SMALL, "ppl"), (LARGE, "ppl"), (SMALL, "gate")])
def test_texts(models, decoders, devices, policy):
    cpu, both = models("llama", policy, devices, batch_size=3)
    assert len({source.device for source in both.fuser.ensemble.sources}) == 2
    for how in ({}, {"temperature": 0.9, "top_k": 20}):
        assert written(both, jobs_of(**how)) == written(cpu, jobs_of(**how))
    rounds = [work for decoder in decoders for work in decoder.rounds.values()]
    assert any(work.graphs for work in rounds)


def test_a_sweep(models):
    configs = tuple(
        FusionConfig(policies.build("fixed", alpha=a, beta=b)) for a, b, _ in PAPER_GRID
    )
    cpu, both = models(devices=SMALL, configs=configs, batch_size=3)
    assert written(both, jobs_of()[:3]) == written(cpu, jobs_of()[:3])


@pytest.mark.parametrize("batch_size", [1, 16])
def test_a_round_is_a_few_launches_and_one_wait(models, batch_size):
    _, both = models(devices=SMALL, batch_size=batch_size)
    kinds = three_rounds(both, batch_size)
    assert 0 < kinds["launch"] <= 3 * 60
    assert kinds["sync"] <= 3 * 2
    assert kinds["h2d"] == 0
