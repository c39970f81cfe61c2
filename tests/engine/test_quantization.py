"""8-bit and 4-bit weights with the real bitsandbytes, where it is installed (extra `quant`)."""

from __future__ import annotations

import pytest

from trimix_lm_eval import TriMix

PAIRS = [("In the beginning God", " created the heaven and the earth"), ("And", " he said")]


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_quantized_large_model_scores_close_to_fp32(bits):
    pytest.importorskip("bitsandbytes", reason="pip install 'trimix-lm-eval[quant]'")
    plain = TriMix.from_pretrained("demo", policy="fixed", alpha=0.5, beta=0.3, dtype="float32")
    small = TriMix.from_pretrained(
        "demo", policy="fixed", alpha=0.5, beta=0.3, dtype="float32", large_quantization=bits
    )
    large = small.fuser.ensemble.sources[0]
    kinds = {type(module).__name__ for module in large.model.modules()}
    assert kinds & {"Linear8bitLt", "Linear4bit"}
    assert not large.plain
    for ours, exact in zip(small.loglikelihood(PAIRS), plain.loglikelihood(PAIRS), strict=True):
        assert ours.log_likelihood != exact.log_likelihood
        assert ours.log_likelihood == pytest.approx(exact.log_likelihood, rel=0.1)
