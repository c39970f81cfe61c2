"""The device that lm-eval passes on where nobody names one."""

import pytest
import torch

from trimix_lm_eval.loading.run_config import usable


@pytest.mark.parametrize("gpu", [True, False])
def test_the_default_of_lm_eval_needs_a_gpu(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for default in ("cuda", "cuda:0"):
        assert usable(default) == (default if gpu else None)
    for named in ("cpu", "cuda:1", None):
        assert usable(named) == named, "kept, so that preflight can say what is wrong with it"
