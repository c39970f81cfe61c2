"""What is found out about a model when it is loaded."""

from __future__ import annotations

import types
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BloomConfig, LlamaConfig, MambaConfig

from trimix_lm_eval.engine.probe import load_runner
from trimix_lm_eval.utils import errors
from trimix_lm_eval.utils.errors import TrimixError


@pytest.fixture
def model():
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 64}
    config = LlamaConfig(**shape, num_attention_heads=2, initializer_range=0.3)
    return AutoModelForCausalLM.from_config(config).eval()


def before_5_24(forward, name):
    def named(self, past_key_values=None, **more):
        return forward(**{**more, name: past_key_values})

    return named


def from_5_24_on(forward, name):
    def named(self, cache=None, **more):
        return forward(**{**more, name: cache})

    return named


def no_change(forward, name):
    return None


@pytest.mark.parametrize("version", [before_5_24, from_5_24_on, no_change])
def test_the_cache_goes_by_the_models_own_name(model, version):
    own = load_runner("large_ins", model, 64).cache_name
    renamed = version(model.base_model.forward, own)
    if renamed:
        model.base_model.forward = types.MethodType(renamed, model.base_model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        runner = load_runner("large_ins", model, 64)
    # A forward that fails is run without a cache, so that this would be slow, not wrong.
    assert not runner.plain
    assert runner.token_bytes > 0


def test_a_model_that_looks_ahead_is_refused():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.3,
    )
    bert = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(TrimixError, match=r"large_ins \(bert\) is no causal language model"):
        load_runner("large_ins", bert, 64)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4), "ValueError"),
        (MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2), "KeyError"),
    ],
)
def test_why_a_model_is_run_without_a_cache(config, why, caplog):
    errors._warned.clear()
    model = AutoModelForCausalLM.from_config(config).eval()
    assert load_runner("large_ins", model, 64).plain
    assert f"does not follow explicit attention masks ({why}" in caplog.text
