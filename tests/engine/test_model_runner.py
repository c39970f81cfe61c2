"""What is found out about a model when it is loaded."""

from __future__ import annotations

import types
import warnings

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BertConfig,
    BloomConfig,
    LlamaConfig,
    RwkvConfig,
)

from tests.conftest import config_of
from trimix_lm_eval.engine import kv_cache
from trimix_lm_eval.engine.model_runner import body_of
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


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_a_model_of_several_runs_shares_prompts_in_all(family):
    model = AutoModelForCausalLM.from_config(config_of(family, "small_cpt")).eval()
    before = model.config._attn_implementation
    for _ in range(3):
        runner = load_runner("small_cpt", model, 265)
        assert runner.shares_prefixes and not runner.why_not
    kv_cache.uninstall_attention(model)
    assert model.config._attn_implementation == before


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


def sparse(index_heads):
    """A model that attends to those tokens that some heads give the highest scores, if not 0."""
    latents = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
    config = transformers.DeepseekV32Config(
        **latents,
        v_head_dim=8,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        first_k_dense_replace=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        index_head_dim=16,
        index_n_heads=index_heads,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.skipif(not hasattr(transformers, "DeepseekV32Config"), reason="not in transformers")
def test_a_selection_that_later_tokens_change_is_refused():
    """With 2 heads many scores are 0: which of them are selected depends on how many there are."""
    errors._warned.clear()
    with pytest.raises(TrimixError, match="deepseek_v32.*how many tokens follow"):
        load_runner("large_ins", sparse(2), 64)
    model = sparse(32)
    assert load_runner("large_ins", model, 64).plain
    assert model.model.layers[0].self_attn.indexer.index_topk == model.config.index_topk == 2048


def test_an_implementation_that_somebody_chose_stays():
    for own, name in ((False, "eager"), (True, "trimix")):
        model = AutoModelForCausalLM.from_config(config_of("gpt_oss", "small_base")).eval()
        runner = load_runner("large_ins", model, 64, own_attention=own)
        assert (runner.plain, runner.shares_prefixes) == (False, own)
        assert model.config._attn_implementation == name


@pytest.mark.parametrize("floor_scale", [8, 8192])
def test_slots_that_a_model_takes_for_positions_show_however_late(floor_scale):
    config = config_of("llama4", "small_base")
    config.floor_scale, config.max_position_embeddings = floor_scale, 10_000
    runner = load_runner("large_ins", AutoModelForCausalLM.from_config(config).eval(), 64)
    assert runner.one_row and runner.shares_prefixes and not runner.plain


def test_the_body_is_what_is_not_the_head_in_a_wrapper_as_well():
    text = config_of("llama4", "small_base")
    sizes = ("hidden_size", "vision_output_dim", "projector_input_dim", "projector_output_dim")
    vision = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    vision |= {"image_size": 28, "patch_size": 14, **dict.fromkeys(sizes, 8)}
    parts = {"text_config": text.to_dict(), "vision_config": vision}
    config = transformers.Llama4Config(**parts, pad_token_id=text.pad_token_id)
    wrapper = AutoModelForImageTextToText.from_config(config)
    assert body_of(wrapper) is body_of(wrapper.language_model) is wrapper.language_model.model


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4), "ValueError"),
        (RwkvConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2), "logits differ by"),
    ],
)
def test_why_a_model_is_run_without_a_cache(config, why, caplog):
    errors._warned.clear()
    model = AutoModelForCausalLM.from_config(config).eval()
    assert load_runner("large_ins", model, 64).plain
    assert f"does not follow explicit attention masks ({why}" in caplog.text
