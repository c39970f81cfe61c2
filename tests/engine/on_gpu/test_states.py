"""Captured rounds of models with states, beside models without."""

from __future__ import annotations

import pytest

from tests.conftest import FAMILIES
from tests.support.gpu.texts import jobs_of, written
from trimix_lm_eval import TriMix
from trimix_lm_eval.engine.graph_decoder import can_capture
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.config import FusionConfig

pytestmark = pytest.mark.skipif("qwen3_5" not in FAMILIES, reason="needs a newer transformers")


@pytest.mark.parametrize(
    ("large", "small", "policy", "drafts"),
    [
        ("llama", "qwen3_5", "gate", True),
        ("llama", "qwen3_5", "ppl", False),
        ("qwen3_5", "llama", "ppl", False),
    ],
)
def test_sources_of_different_kinds(pico, decoders, large, small, policy, drafts):
    """States of the drafter are kept behind each draft; those of others allow none.

    A gate needs no small_base, which ppl does.
    """
    folders = {
        "large_ins": pico(large)["large_ins"],
        **{role: pico(small)[role] for role in ("small_cpt", "small_base")},
    }
    asked = {**folders, "policy": policy, "dtype": "float32", "batch_size": 3, "speculative": 3}
    cpu, device = (TriMix.from_pretrained(**asked, device=where) for where in ("cpu", "cuda:0"))
    for how in ({}, {"temperature": 0.9}):
        assert written(device, jobs_of(**how)) == written(cpu, jobs_of(**how))
    assert all(any(work.graphs for work in one.rounds.values()) for one in decoders)
    assert (device.speculation.summary()["draft_length"] > 0) == drafts


def test_two_gpus(models):
    """What each source's states go on from is told by where rows stand, which both GPUs know."""
    cpu, device = models("qwen3_5", "ppl", devices=(("small_device", "cuda:1"),), batch_size=2)
    assert written(device, jobs_of()) == written(cpu, jobs_of())


def test_a_sweep_is_not_captured(models):
    """Texts fork behind a token from which states have gone on already."""
    points = [(0.9, 0.1), (0.1, 0.9)]
    configs = [FusionConfig(policies.build("fixed", alpha=a, beta=b)) for a, b in points]
    _, device = models("qwen3_5", configs=tuple(configs))
    assert not can_capture(device.fuser)
