"""What models keep of a text, as said before they are loaded, is what the engine's caches hold."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.families import FAMILIES, Family, known
from trimix_lm_eval.engine.input_batch import TokenTable
from trimix_lm_eval.engine.probe import load_runner
from trimix_lm_eval.loading.preflight import kept, memory
from trimix_lm_eval.loading.preflight.access import Files
from trimix_lm_eval.loading.settings import SourceSpec

ROWS, TOKENS = 2, 7
#: Heads that differ by layer, and a layer that uses the keys and values of another.
GEMMA_4 = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 5,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 272,
}
COMPRESSED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
WITHOUT = ("head_dim",)
HERE = {
    **{name: FAMILIES[name] for name in ("llama", "gemma3_text", "qwen3_5_text")},
    **{name: FAMILIES[name] for name in ("falcon_h1", "mamba2", "lfm2")},
    "gemma4_text": Family("gemma4_text", "Gemma 4", lambda n: GEMMA_4),
    "deepseek_v3": Family("deepseek_v3", "DeepSeek V3", lambda n: COMPRESSED, WITHOUT),
}


def estimate(config, dtype):
    spec = SourceSpec("large_ins", "x", dtype=dtype)
    return memory.estimate(spec, config, Files(Path("x"), None, {}, False), "cpu")


@torch.inference_mode()
def ran(config, dtype):
    """The runner of a model, and its cache after some tokens."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    runner = load_runner("large_ins", model, config.vocab_size)
    if runner.plain:
        pytest.skip("run without a cache in this version of transformers")
    table, cache = TokenTable(ROWS, torch.device("cpu")), runner.new_cache(ROWS)
    ids = torch.arange(ROWS * TOKENS).view(ROWS, TOKENS) + 3
    table.append(ids, torch.ones_like(ids, dtype=torch.bool))
    runner.forward(table, 0, cache, None)
    return runner, cache


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", HERE)
def test_estimate_is_what_a_cache_takes(name, dtype):
    if not known(name):
        pytest.skip("not in this version of transformers")
    config = HERE[name].config(4)
    runner, cache = ran(config, dtype)
    found = estimate(config, dtype)
    assert found.cache * ROWS * TOKENS == cache.nbytes
    assert found.states == cache.row_bytes
    assert (found.cache, found.states) == (runner.token_bytes, runner.row_bytes)
    assert bool(found.states) == (runner.new_state_cache is not None)


def test_states_are_shown_where_there_are_any():
    llama = estimate(FAMILIES["llama"].config(2), "float32")
    (head, row, _) = memory.table([llama], {"cpu": 1})
    assert "states" not in head
    (head, *rows, _) = memory.table([llama, llama._replace(states=3 * 2**30)], {"cpu": 1})
    assert head.endswith("states/row")
    assert rows[0].endswith("0.00 GiB") and rows[1].endswith("3.00 GiB")


@pytest.mark.parametrize("name", ["llama", "gemma4_text"])
def test_a_model_that_cannot_be_run_without_storage(name, monkeypatch):
    """Its config says how large keys and values are."""
    if not known(name):
        pytest.skip("not in this version of transformers")
    config = HERE[name].config(4)
    by_run = estimate(config, "float32")
    monkeypatch.setattr(memory, "_looks", {})
    monkeypatch.setattr(kept, "_layers_of", lambda model: None)
    assert estimate(config, "float32") == by_run


def test_what_a_config_does_not_say_is_unknown(monkeypatch):
    monkeypatch.setattr(memory, "_looks", {})
    monkeypatch.setattr(kept, "_layers_of", lambda model: None)
    config = AutoConfig.for_model("xglm", d_model=32, attention_heads=4, ffn_dim=8, num_layers=1)
    config.num_hidden_layers = None
    assert estimate(config, "float32").cache is None
