"""Families of today in `trimix cpt`: what is trained, with what gradients, and what is saved."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests.conftest import byte_tokenizer
from tests.support.cpt_runs import config, difference
from trimix_lm_eval.training.cpt import adapters, saving, train, trainer
from trimix_lm_eval.training.cpt import base as bases
from trimix_lm_eval.training.cpt import config as configs

pytestmark = pytest.mark.slow

SHAPE = {
    "vocab_size": 290,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "initializer_range": 0.35,
}
DELTA = {
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
SLIDING = {
    "head_dim": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 5,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 290,
    "num_kv_shared_layers": 0,
}
#: Class of the config -> what is not as in `SHAPE`; of a wrapper its own keys, with those of its
#: text under "text".
FAMILIES = {
    "Qwen3_5TextConfig": {**DELTA, "tie_word_embeddings": True},
    "Qwen3NextConfig": {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 16},
    "Lfm2Config": {"layer_types": ["conv", "full_attention"]},
    "GraniteMoeHybridConfig": {
        **MAMBA,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
    },
    "FalconH1Config": {**MAMBA, "head_dim": 8, "mamba_d_ssm": 64},
    "Gemma4TextConfig": {**SLIDING, "global_head_dim": 16},
    "Gemma3nTextConfig": {
        **SLIDING,
        "intermediate_size": [64, 64],
        "activation_sparsity_pattern": [0.0, 0.0],
        "laurel_rank": 4,
        "altup_num_inputs": 2,
    },
    "Ministral3Config": {"head_dim": 8},
    "Qwen3_5Config": {
        "text": {**DELTA, "tie_word_embeddings": True},
        "vision_config": {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32},
        "tie_word_embeddings": True,
    },
    "Gemma3Config": {
        "text": {"head_dim": 8, "layer_types": SLIDING["layer_types"], "sliding_window": 5},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
        "tie_word_embeddings": True,
    },
    "Mistral3Config": {
        "text": {"head_dim": 8, "model_type": "mistral"},
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 8,
            "image_size": 28,
            "patch_size": 14,
        },
        "tie_word_embeddings": False,
    },
}
#: Names of layers that have no adapters in some of them.
REFUSED = {
    "FalconH1Config": {"out_proj"},
    "Gemma3nTextConfig": {"correction_coefs"},  # its weights are clipped, past the adapter
    "Qwen3NextConfig": {"gate_proj", "up_proj", "down_proj"},  # of the shared expert
}


def build(folder, family):
    """Write a random model of a family, with its tokenizer."""
    if not hasattr(transformers, family):
        pytest.skip("not in this version of transformers")
    if family == "Qwen3NextConfig" and not hasattr(transformers, "Qwen3_5TextConfig"):
        pytest.skip("peft reads adapters of its experts with a newer transformers only")
    kind, given = getattr(transformers, family), dict(FAMILIES[family])
    text = given.pop("text", None)
    whole = (
        kind(**{**SHAPE, **given}) if text is None else kind(text_config={**SHAPE, **text}, **given)
    )
    torch.manual_seed(1)
    make = AutoModelForCausalLM if text is None else AutoModelForImageTextToText
    model = make.from_config(whole)
    for name, parameter in model.named_parameters():
        if name.endswith("correct_output_scale"):
            nn.init.ones_(parameter)  # zero at random, which no trained model has
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def loss(model):
    """The loss on a text, as in training."""
    ids = torch.arange(96).view(2, 48) * 7 % 250
    model.train()
    return model(input_ids=ids, labels=ids).loss


def without_gradient(model):
    """Trained parameters whose gradients are missing, zero or no numbers."""
    return [
        name
        for name, one in model.named_parameters()
        if one.requires_grad
        and (one.grad is None or not one.grad.isfinite().all() or not one.grad.any())
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_and_its_merged_adapters_load(family, tmp_path):
    asked = configs.read(config(build(tmp_path / "base", family), tmp_path, lora_rank=4))
    base = bases.find(asked)
    model = bases.load(base, asked)
    assert type(model).__name__.endswith("ForCausalLM")
    loss(model).backward()
    assert not without_gradient(model)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    inside = set(model.get_decoder().modules())
    layers = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m in inside}

    adapted = adapters.adapted(model, asked)
    torch.manual_seed(2)
    for name, one in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(one, std=0.05)
    loss(adapted).backward()
    assert not without_gradient(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    saving.save(saving.trained(base, asked, tmp_path / "adapter"), base, tmp_path / "model")

    loaded, told = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, output_loading_info=True
    )
    assert not any(told.values()) and loaded.config.use_cache
    ids = torch.arange(32)[None]
    wanted = adapted.eval()(input_ids=ids).logits
    assert torch.allclose(loaded.eval()(input_ids=ids).logits, wanted, atol=1e-3)
    moved = {name for name, one in loaded.named_parameters() if not torch.equal(one, before[name])}
    refused = REFUSED.get(family, set())
    certain = {f"{name}.weight" for name in layers if name.split(".")[-1] not in refused}
    experts = {n for n, one in before.items() if one.ndim == 3 and "conv" not in n}
    assert certain | experts <= moved <= {f"{name}.weight" for name in layers} | experts
    assert bool(experts) is (family in ("Qwen3NextConfig", "GraniteMoeHybridConfig"))


class Stopped(BaseException):
    """Raised where a process is to end."""


#: The second has experts: one tensor in memory, many in files.
@pytest.mark.parametrize("more", [{}, {"lora_rank": 4}], ids=["weights", "adapters"])
@pytest.mark.parametrize("family", ["Lfm2Config", "Qwen3NextConfig"])
def test_a_hybrid_goes_on_as_if_it_had_not_been_stopped(
    tmp_path, monkeypatch, capsys, family, more
):
    base = build(tmp_path / "base", family)
    given = config(base, tmp_path, steps=4, evaluations=2, **more)
    train({**given, "output": str(tmp_path / "whole")})
    said = capsys.readouterr().out
    assert said.count("in one row this model would see the document before") == 1

    measured = trainer.CptTrainer.evaluate

    def stopping(self, *args, **kwargs):
        if self.state.global_step == 4:
            raise Stopped
        return measured(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(trainer.CptTrainer, "evaluate", stopping)
        train(given)
    train(given)
    assert "going on after step 2" in capsys.readouterr().out
    assert difference(tmp_path / "out", tmp_path / "whole") <= 1e-6


@pytest.mark.parametrize("more", [{}, {"lora_rank": 4}], ids=["weights", "adapters"])
@pytest.mark.parametrize("family", ["Qwen3_5TextConfig", "Qwen3NextConfig"])
def test_what_is_saved_is_the_best_step(tmp_path, monkeypatch, family, more):
    """The last one is spoiled before it is measured."""
    measured = trainer.CptTrainer.evaluate

    def spoiled(self, *args, **kwargs):
        if self.state.global_step == self.state.max_steps:
            for name, one in self.model.named_parameters():
                if one.requires_grad and "norm" not in name:
                    one.data = one.data.flip(0)
        return measured(self, *args, **kwargs)

    monkeypatch.setattr(trainer.CptTrainer, "evaluate", spoiled)
    base = build(tmp_path / "base", family)
    train(config(base, tmp_path, steps=4, evaluations=2, **more))
    log = json.loads((tmp_path / "out" / "cpt" / "log.json").read_text())
    best, last = [one["eval_bits_per_byte"] for one in log if "eval_bits_per_byte" in one]
    found = json.loads((tmp_path / "out" / "cpt" / "measured.json").read_text())
    assert best < last - 0.1
    assert found["held_out"]["after"] == pytest.approx(best, abs=1e-3)
