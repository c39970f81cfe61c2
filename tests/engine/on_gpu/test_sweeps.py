"""Many fusion configs in captured rounds: each writes what it writes on a CPU."""

from __future__ import annotations

import pytest

from tests.support.gpu.texts import jobs_of, written
from trimix_lm_eval.engine.static_batch import StaticBatch
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.config import FusionConfig
from trimix_lm_eval.fusion.weights import PAPER_GRID


def config(policy, plausibility=None, **options):
    return FusionConfig(policies.build(policy, **options), plausibility)


GRID = [config("fixed", alpha=a, beta=b) for a, b, _ in PAPER_GRID]
OTHERS = [
    config("gate"),
    config("gate", 0.3),
    config("ppl"),
    config("bayes"),
    config("bayes", 0.3, share=0.2),
    config("fixed", 0.1, alpha=0.3, beta=0.5),
    config("small_cpt"),
]


@pytest.mark.parametrize(("family", "k"), [("llama", 4), ("gemma3", 0)])
def test_thirty_six_points(models, decoders, family, k):
    cpu, device = models(family, configs=tuple(GRID), batch_size=4, speculative=k)
    jobs = jobs_of()[:4]
    assert written(device, jobs) == written(cpu, jobs)
    (decoder,) = decoders
    assert any(work.graphs for work in decoder.rounds.values())
    assert decoder.batch.shape.rows > 4, "texts that differ have rows of their own"


def test_branches_that_agree_share_a_row(models, monkeypatch):
    seen = []
    tell = StaticBatch._tell

    def spied(self, new):
        seen.append([len(one.branches) for one in self.sequences.values()])
        return tell(self, new)

    monkeypatch.setattr(StaticBatch, "_tell", spied)
    _, device = models(configs=tuple(GRID), batch_size=2)
    written(device, jobs_of()[:2])
    assert max(map(max, seen)) > 4 and max(map(len, seen)) > 2


def test_policies_of_all_kinds(models):
    configs = (*GRID[::9], *OTHERS)
    cpu, device = models(configs=configs, batch_size=3)
    for how in ({}, {"temperature": 1.2, "top_k": 20}):
        jobs = jobs_of(**how)[2:5]
        assert written(device, jobs) == written(cpu, jobs)
