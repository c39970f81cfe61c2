"""Times are taken where the work is done; fewer bits are summed in fp32, by a GPU's own kernel."""

from __future__ import annotations

import pytest
import torch

from tests.support import gpu
from tests.support.running import TRIO
from trimix_lm_eval import TriMix
from trimix_lm_eval.engine.spec_decode import Stopwatch


def test_times_are_taken_on_the_device_of_the_work():
    """Whatever device is the current one."""
    with gpu.watch() as seen, torch.cuda.device(0):
        watch = Stopwatch(torch.device("cuda:1"))
        watch.lap()
        watch.seconds()
    assert {event.device for event in seen.of("event", "sync")} == {"cuda:1"}


def test_attention_to_shared_prefixes_in_bf16(pico):
    """Scores come out of the product in fp32, and no key is copied to be multiplied."""
    folders = {role: pico("llama")[role] for role in TRIO}
    asked = {
        **folders,
        "policy": "fixed",
        "alpha": 0.4,
        "beta": 0.8,
        "dtype": "bfloat16",
        "batch_size": 2,
    }
    block = "The heron and the hen were there in the inn. " * 2
    pairs = [(block + text, more) for text in ("Then", "x") for more in (" the barn", " an e")]
    cpu, device = (TriMix.from_pretrained(**asked, device=where) for where in ("cpu", "cuda:0"))
    want = [score.log_likelihood for score in cpu.loglikelihood(pairs)]
    with gpu.watch() as seen:
        got = [score.log_likelihood for score in device.loglikelihood(pairs)]
    products = [event for event in seen.of("launch") if event.op == "aten::bmm.dtype"]
    assert products and all("_attend_few" in x.site or "exact_product" in x.site for x in products)
    assert got == pytest.approx(want, rel=0.01)
