"""Captured rounds of sources with the same tokens under other ids."""

import pytest

from tests.conftest import CAPTURED
from tests.support.gpu.texts import K, jobs_of, written
from tests.support.permuted import permuted
from tests.support.running import TRIO
from trimix_lm_eval import TriMix


@pytest.mark.parametrize(
    ("family", "small"),
    [("llama", "cuda:0"), ("llama", "cuda:1"), *((f, "cuda:0") for f in CAPTURED[-1:])],
)
def test_captured_by_other_ids(pico, tmp_path, decoders, family, small):
    """The map lies on each GPU before anything is captured, and nothing waits for it."""
    plain = {role: pico(family)[role] for role in TRIO}
    other = {role: permuted(plain[role], tmp_path / role, i) for i, role in enumerate(TRIO)}
    asked = {"policy": "fixed", "dtype": "float32", "speculative": K, "batch_size": 3}
    cpu = TriMix.from_pretrained(**plain, **asked, device="cpu")
    where = {"device": "cuda:0", "small_device": small}
    device = TriMix.from_pretrained(**other, **asked, **where, tokenizer=plain["large_ins"])
    assert {one.kind for one in device.report.relations.values()} == {"permuted"}
    for how in ({}, {"temperature": 0.9, "top_k": 30}):
        assert written(device, jobs_of(**how)) == written(cpu, jobs_of(**how))
    assert device.fuser.ensemble.not_captured is None
    assert any(work.graphs for decoder in decoders for work in decoder.rounds.values())
