"""Tiny random models of the families that people have, and how exactly each is run.

A family is examined as a user would run it: its models are written to disk as they are released,
wrappers as wrappers, and loaded by the package. Everything that is asked of them is compared with
a naive reference (`naive`), which is what transformers loads from the same files: prompts with
options, rolling texts, greedy and sampled texts in batches of one and of four, with drafts and
without. What may differ is what the models' own logits differ by when their embeddings are rounded
anew, since a gated delta rule, for one, sums a text in chunks, and in others if it is cut. A token
may be another only if so much decides between the two.

Longer than most modules, since half of it is the list.

python -m tests.support.families                      # all of them; writes docs/families.md
python -m tests.support.families qwen3_5_text lfm2    # some
"""

from __future__ import annotations

import dataclasses
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from tests.conftest import byte_tokenizer
from tests.support.loaded import Trio
from tests.support.naive import Naive
from trimix_lm_eval import TriMix
from trimix_lm_eval.engine import scheduler
from trimix_lm_eval.engine.model_runner import ModelRunner
from trimix_lm_eval.engine.probe import described
from trimix_lm_eval.engine.sampler import Draw, SamplingParams, pick
from trimix_lm_eval.engine.sequence import CompletionOutput
from trimix_lm_eval.utils.errors import TrimixError

PAGE = Path(__file__).parent.parent.parent / "docs" / "families.md"
ALPHA, BETA = 0.4, 0.9
#: Ids of the byte tokenizer, and rows of the embeddings that stand for no token.
VOCAB = 272

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 0,
}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}


class Family(NamedTuple):
    """Models of one kind.

    Attributes:
        name: What the table and the command call it: its ``model_type``, if no other has that.
        released: A release of that kind.
        fields: Of the config of a model with so many layers, besides the common ones.
        without: Common fields that the family does not have.
        model_type: Of the config, if it is not the name.
        beside: Of a model that also sees: fields of its config beside that of its text model.
        max_length: The context that is asked for, if any.
    """

    name: str
    released: str
    fields: Callable[[int], dict[str, Any]] = lambda n: {}
    without: tuple[str, ...] = ()
    model_type: str = ""
    beside: dict[str, Any] | None = None
    max_length: int | None = None

    @property
    def known(self) -> bool:
        """Whether this version of transformers has the family."""
        return (self.model_type or self.name) in CONFIG_MAPPING_NAMES

    def config(self, layers: int, tied: bool = False) -> Any:
        """The config of a tiny model, whose head may be tied to its embeddings."""
        kind, head = self.model_type or self.name, {"tie_word_embeddings": tied}
        fields = {**_SHAPE, "num_hidden_layers": layers, **head}
        fields = {key: value for key, value in fields.items() if key not in self.without}
        fields |= self.fields(layers)
        if self.beside is None:
            return AutoConfig.for_model(kind, **fields)
        return AutoConfig.for_model(kind, text_config=fields, **self.beside, **head)


def _types(*pattern: str) -> Callable[[int], dict[str, Any]]:
    """Layers of some kinds in turns."""
    return lambda n: {"layer_types": [pattern[i % len(pattern)] for i in range(n)]}


def _with(types: Callable[[int], dict[str, Any]], **more: Any) -> Callable[[int], dict[str, Any]]:
    return lambda n: {**types(n), **more}


_SLIDING = _with(_types("sliding_attention", "full_attention"), sliding_window=5)
_DELTA_TYPES = _types("linear_attention", "full_attention")
_CONV_TYPES = _types("conv", "full_attention")
_NO_GROUPS = ("num_key_value_heads", "head_dim")
_LATENTS = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "head_dim": 8,
    "num_key_value_heads": 4,
}
_MANY_EXPERTS = {
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
}
#: Queries are scaled by their positions beyond the first 16.
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def _gemma3n(n: int) -> dict[str, Any]:
    """The last layers use the keys of those before, and every layer has embeddings of its own."""
    own = {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8, "laurel_rank": 4}
    sparsity = {"activation_sparsity_pattern": [0.0] * (n + 1), "num_hidden_layers": n + 1}
    return {**_SLIDING(n + 1), **own, **sparsity, "num_kv_shared_layers": n - 1}


def _gemma4(n: int) -> dict[str, Any]:
    """Layers that see everything have larger heads, and no values but their keys."""
    heads = {"global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True}
    return {**_SLIDING(n), **heads, "hidden_size_per_layer_input": 0}


def _gemma4_e(n: int) -> dict[str, Any]:
    own = {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8}
    shared = {"num_hidden_layers": n + 1, "num_kv_shared_layers": n - 1}
    return {**_SLIDING(n + 1), **own, **shared, "global_head_dim": 16, "use_double_wide_mlp": True}


def _gemma4_moe(n: int) -> dict[str, Any]:
    experts = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2}
    return {**_gemma4(n), **experts, "moe_intermediate_size": 32}


def _llama4(n: int) -> dict[str, Any]:
    """Of the last layer, which has no positions, the temperature grows with them."""
    blocks = {"no_rope_layers": [1] * (n - 1) + [0], "attention_chunk_size": 16}
    experts = {"moe_layers": [1], "num_local_experts": 4, "intermediate_size_mlp": 64}
    return {**blocks, **experts, "attn_scale": 0.5}


def _phi(n: int) -> dict[str, Any]:
    factors = {"short_factor": [1.0, 1.1, 1.2], "long_factor": [1.0, 3.0, 8.0]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75, **factors}
    return {"rope_parameters": rope, "sliding_window": None}


def _original(tokens: int) -> dict[str, Any]:
    """The context up to which a long-rope model has the factors for short texts."""
    return {"original_max_position_embeddings": tokens}


def _falcon_rw(n: int) -> dict[str, Any]:
    return {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}


_CLIP = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
    "patch_size": 14,
}
_AS_GEMMA4 = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 32,
    "position_embedding_size": 16,
}
_QWEN = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}
_IDS = {"image_token_id": 270, "video_token_id": 269, "vision_start_token_id": 268}
_AS_QWEN2 = {
    "vision_config": {**_QWEN, "out_hidden_size": 32, "fullatt_block_indexes": [0]},
    **_IDS,
}
_AS_QWEN3 = {
    "vision_config": {**_QWEN, "out_hidden_size": 32, "deepstack_visual_indexes": [0]},
    **_IDS,
}
_AS_QWEN3_5 = {"vision_config": {**_QWEN, "out_hidden_size": 32}, **_IDS}


def _seen(**more: Any) -> dict[str, Any]:
    """What is beside the text model of a wrapper that sees as CLIP does."""
    return {"vision_config": _CLIP, **more}


def _rope_of_three(n: int) -> dict[str, Any]:
    """Positions are of a time, a row and a column; of a text the three are the same."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    return {"rope_parameters": rope}


#: Every family that is examined, those that people run most first.
FAMILIES = {
    family.name: family
    for family in (
        Family("llama", "Llama 3"),
        Family("qwen2", "Qwen2.5"),
        Family("qwen3", "Qwen3"),
        Family("mistral", "Mistral 7B", lambda n: {"sliding_window": 5}),
        Family("gemma2", "Gemma 2", _with(_SLIDING, query_pre_attn_scalar=8)),
        Family("gemma3_text", "Gemma 3", _SLIDING),
        Family("gemma3", "Gemma 3, wrapper", _SLIDING, beside=_seen(mm_tokens_per_image=4)),
        Family("gemma3n_text", "Gemma 3n", _gemma3n),
        Family("gemma3n", "Gemma 3n, wrapper", _gemma3n, beside={}),
        Family("gemma4_text", "Gemma 4 31B", _gemma4),
        Family("gemma4_e", "Gemma 4 E2B", _gemma4_e, model_type="gemma4_text"),
        Family("gemma4_moe", "Gemma 4 26B-A4B", _gemma4_moe, model_type="gemma4_text"),
        Family("gemma4", "Gemma 4 E2B, wrapper", _gemma4_e, beside={"vision_config": _AS_GEMMA4}),
        Family(
            "mistral3", "Mistral Small 3.1", lambda n: {"model_type": "mistral"}, beside=_seen()
        ),
        Family(
            "ministral3_wrapper",
            "Ministral 3",
            lambda n: {"model_type": "ministral3", "rope_parameters": _YARN},
            model_type="mistral3",
            beside=_seen(),
        ),
        Family("qwen2_5_vl", "Qwen2.5-VL", _rope_of_three, ("head_dim",), beside=_AS_QWEN2),
        Family("qwen3_vl", "Qwen3-VL", _rope_of_three, beside=_AS_QWEN3),
        Family("qwen3_vl_moe", "Qwen3-VL MoE", _with(_rope_of_three, **_EXPERTS), beside=_AS_QWEN3),
        Family("llama4_text", "Llama 4, within floor_scale", _with(_llama4, floor_scale=8192)),
        Family(
            "llama4_beyond",
            "Llama 4, beyond floor_scale",
            _with(_llama4, floor_scale=8),
            model_type="llama4_text",
        ),
        Family("gpt_oss", "gpt-oss", _with(_SLIDING, num_local_experts=4, num_experts_per_tok=2)),
        Family("deepseek_v3", "DeepSeek-V3", lambda n: {**_LATENTS, **_MANY_EXPERTS}),
        Family("mixtral", "Mixtral", lambda n: {"num_local_experts": 4}),
        Family("qwen3_moe", "Qwen3 MoE", lambda n: dict(_EXPERTS)),
        Family(
            "phi3",
            "Phi-4-mini, within its original context",
            _with(_phi, original_max_position_embeddings=256),
        ),
        Family(
            "phi3_long",
            "Phi-4-mini, `max_length=` beyond it",
            _with(_phi, **_original(64)),
            model_type="phi3",
            max_length=512,
        ),
        Family("qwen3_5_text", "Qwen3.5", _with(_DELTA_TYPES, **_DELTA)),
        Family("qwen3_5_moe_text", "Qwen3.5 MoE", _with(_DELTA_TYPES, **_DELTA, **_EXPERTS)),
        Family("qwen3_5", "Qwen3.5, wrapper", _with(_DELTA_TYPES, **_DELTA), beside=_AS_QWEN3_5),
        Family("qwen3_next", "Qwen3-Next", _with(_DELTA_TYPES, **_DELTA, **_EXPERTS)),
        Family("lfm2", "LFM2", _with(_CONV_TYPES, block_auto_adjust_ff_dim=False)),
        Family(
            "lfm2_moe",
            "LFM2 MoE",
            _with(
                _CONV_TYPES,
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=32,
                num_dense_layers=1,
            ),
        ),
        Family(
            "granitemoehybrid",
            "Granite 4 hybrid",
            _with(
                _DELTA_TYPES,
                **_MAMBA2,
                mamba_expand=2,
                num_local_experts=0,
                shared_intermediate_size=64,
                logits_scaling=3.0,
                position_embedding_type="nope",
            ),
        ),
        Family("olmo_hybrid", "OLMo hybrid", _with(_DELTA_TYPES, **_DELTA)),
        Family(
            "falcon_h1",
            "Falcon-H1",
            lambda n: {**_MAMBA2, "mamba_n_heads": 4, "mamba_d_ssm": 32, "lm_head_multiplier": 0.5},
        ),
        Family(
            "nemotron_h",
            "Nemotron-H",
            lambda n: {
                "layer_types": ["linear_attention", "full_attention", "mlp"][:n],
                "mamba_num_heads": 8,
                "mamba_head_dim": 8,
                "ssm_state_size": 16,
                "n_groups": 1,
                "chunk_size": 16,
            },
            ("num_hidden_layers",),
        ),
        Family("bamba", "Bamba", lambda n: {"attn_layer_indices": [1], **_MAMBA2}, ("head_dim",)),
        Family(
            "jamba",
            "Jamba",
            lambda n: {
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
                "expert_layer_period": 2,
                "expert_layer_offset": 1,
                "num_experts": 4,
                "mamba_d_state": 8,
            },
            ("head_dim",),
        ),
        Family(
            "zamba2",
            "Zamba2",
            lambda n: {
                "num_key_value_heads": 4,
                "layers_block_type": ["mamba", "hybrid"] * (n // 2) + ["mamba"] * (n % 2),
                "mamba_d_state": 16,
                "n_mamba_heads": 8,
                "mamba_headdim": 8,
                "mamba_ngroups": 1,
                "num_mem_blocks": 1,
                "use_shared_attention_adapter": False,
                "adapter_rank": 4,
                "chunk_size": 16,
            },
            ("head_dim",),
        ),
        Family(
            "mamba2",
            "Mamba 2",
            lambda n: {
                "num_heads": 8,
                "head_dim": 8,
                "state_size": 16,
                "n_groups": 1,
                "chunk_size": 16,
            },
            ("intermediate_size", "num_attention_heads", "num_key_value_heads"),
        ),
        Family(
            "mamba",
            "Mamba",
            lambda n: {"state_size": 8},
            ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
        ),
        Family(
            "falcon_mamba",
            "Falcon Mamba",
            lambda n: {"state_size": 8},
            ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
        ),
        Family(
            "kimi_linear",
            "Kimi Linear",
            _with(
                _DELTA_TYPES,
                **_LATENTS,
                **_EXPERTS,
                num_experts_per_token=2,
                linear_head_dim=8,
                linear_num_heads=4,
            ),
        ),
        Family(
            "bailing_hybrid",
            "Ling 2.5",
            _with(
                _DELTA_TYPES,
                **_LATENTS,
                **_EXPERTS,
                num_experts_per_token=2,
                num_expert_group=1,
                topk_group=1,
                first_k_dense_replace=1,
            ),
        ),
        Family(
            "lfm3",
            "LFM3",
            _with(_types("conv", "full_attention", "sliding_attention"), sliding_window=5),
        ),
        Family(
            "minimax",
            "MiniMax-Text",
            _with(_DELTA_TYPES, num_local_experts=4, num_experts_per_tok=2, block_size=16),
        ),
        Family(
            "recurrent_gemma",
            "RecurrentGemma",
            lambda n: {
                "block_types": ["recurrent", "attention"],
                "num_key_value_heads": 1,
                "lru_width": 32,
                "attention_window_size": 8,
            },
        ),
        Family(
            "rwkv",
            "RWKV 4",
            lambda n: {"attention_hidden_size": 32},
            ("num_attention_heads", "num_key_value_heads", "head_dim"),
        ),
        Family("gpt2", "GPT-2", lambda n: {"n_inner": 64}, ("intermediate_size", *_NO_GROUPS)),
        Family(
            "opt",
            "OPT",
            lambda n: {"ffn_dim": 64, "init_std": 0.2, "word_embed_proj_dim": 32},
            ("intermediate_size", "initializer_range", *_NO_GROUPS),
        ),
        Family("gpt_neox", "GPT-NeoX", without=_NO_GROUPS),
        Family("falcon", "Falcon", without=("intermediate_size", *_NO_GROUPS)),
        Family("falcon_alibi", "Falcon RW", _falcon_rw, _NO_GROUPS, model_type="falcon"),
        Family("bloom", "BLOOM", lambda n: {"n_layer": n, "n_head": 4}),
        Family("mpt", "MPT", lambda n: {"max_seq_len": 512}, ("intermediate_size", *_NO_GROUPS)),
        Family(
            "gpt_neo",
            "GPT-Neo",
            lambda n: {
                "attention_types": [[["local", "global"], 1], [["local"], n - 2]],
                "window_size": 16,
            },
            _NO_GROUPS,
        ),
    )
}
#: Sources of different kinds: the families of the large models, and of the small ones.
MIXED = {
    "llama+qwen3_5_text": ("llama", "qwen3_5_text"),
    "qwen3_5_text+llama": ("qwen3_5_text", "llama"),
    "llama+mamba2": ("llama", "mamba2"),
    "jamba+falcon_h1": ("jamba", "falcon_h1"),
}
#: What is refused: no causal language models, by nature or by what they do.
REFUSED = {
    family.name: family
    for family in (
        Family("bert", "BERT", without=_NO_GROUPS),
        Family("xlm", "XLM", lambda n: {"emb_dim": 32, "n_heads": 4, "n_layers": n}),
        Family(
            "deepseek_v32",
            "DeepSeek-V3.2, tokens selected by 2 heads",
            lambda n: {**_LATENTS, **_MANY_EXPERTS, "index_n_heads": 2, "index_head_dim": 16},
        ),
        Family(
            "glm_moe_dsa",
            "GLM-5, tokens selected by 2 heads",
            lambda n: {**_LATENTS, **_MANY_EXPERTS, "index_n_heads": 2, "index_head_dim": 16},
        ),
    )
}


class Reference(Naive):
    """Models as transformers loads them: wrappers whole."""

    def __init__(self, folders: dict[str, str], vocab_size: int, long: bool) -> None:
        self.vocab_size = vocab_size
        self.models = {role: _whole(Path(folder), long) for role, folder in folders.items()}


def _whole(folder: Path, long: bool) -> PreTrainedModel:
    """A model; with ``long`` its rotary embedding takes the factors for long texts."""
    folder = folder / "alone" if (folder / "alone").exists() else folder
    config = AutoConfig.from_pretrained(folder)
    if long:
        config.rope_parameters["short_factor"] = config.rope_parameters["long_factor"]
    auto = AutoModelForCausalLM if config.get_text_config() is config else _WRAPPER
    return auto.from_pretrained(folder, config=config, dtype=torch.float32).eval()


_WRAPPER = AutoModelForImageTextToText


def families(name: str) -> tuple[Family, Family]:
    """Of a row of the table, the families of its large models and of its small ones."""
    large, small = MIXED.get(name, (name, name))
    return FAMILIES[large], FAMILIES[small]


def built(name: str, folder: Path, tokenizer: Any) -> Trio:
    """Write four random models of a row to disk, the large ones deeper, and load them."""
    pair, folders = families(name), dict[str, str]()
    for seed, role in enumerate(("large_ins", "small_cpt", "small_base", "large_base")):
        torch.manual_seed(seed)
        small = "small" in role
        write(pair[small].config(2 if small else 3, tied=small), folder / role)
        tokenizer.save_pretrained(folder / role)
        folders[role] = str(folder / role)
    point = {"policy": "fixed", "alpha": 0.3, "beta": 0.6, "gamma": 0.5}
    asked = {"dtype": "float32", "max_length": pair[0].max_length, **point}
    model = TriMix.from_pretrained(**folders, **asked)
    reference = Reference(folders, model.report.vocab_size, pair[0].max_length is not None)
    return Trio(model, reference, folders)


def write(config: Any, folder: Path) -> None:
    """Write a random model to disk.

    Of a wrapper that only a library makes that is not here, its text model under the names that
    its tensors have in the wrapper, and as it is alone.
    """
    alone = config.get_text_config() is config
    try:
        model = (AutoModelForCausalLM if alone else _WRAPPER).from_config(config)
    except ImportError:
        model = AutoModelForCausalLM.from_config(config.get_text_config())
        model.generation_config.eos_token_id = 257
        model.save_pretrained(folder / "alone")
        inside = {
            f"model.language_model.{name.removeprefix('model.')}": tensor
            for name, tensor in model.state_dict().items()
            if name.startswith("model.")
        }
        if not config.tie_word_embeddings:
            inside["lm_head.weight"] = model.lm_head.weight.detach()
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        save_file(inside, folder / "model.safetensors", {"format": "pt"})
        return
    model.generation_config.eos_token_id = 257
    model.save_pretrained(folder)


# ---------------------------------------------------------------- what is asked

_EXEMPLARS = "Q: The hen in the barn?\nA: It is there.\n\nQ: And the river?\nA: It is not.\n\n"
QUESTIONS = [
    (_EXEMPLARS + "Q: Who is at the inn?\nA:", [" the man", " the hen", " there", " x"]),
    (_EXEMPLARS + "Q: Where is it raining now?\nA:", [" in the barn", " in the inn", " y"]),
    (_EXEMPLARS + "Q: Why?\nA:", [" སྐད་ཡིག", " so"]),
    ("The river", [" in the other barn", " z"]),
]
TEXTS = ["བོད་སྐད་ཡིག", "The winter in the inn was long. " * 3, "x"]
PROMPTS = [
    _EXEMPLARS + "Q: Who is at the inn?\nA:",
    _EXEMPLARS + "Q: Why?\nA:",
    "x",
    "There were rivers in the barn.\n",
    "In the other",
]
STOPS = ("\n\n", "e", " ", "་", "7", "Q")


class Asked(NamedTuple):
    """How much is asked.

    Attributes:
        exemplars: Characters of exemplars.
        questions: How many.
        texts: How many are scored.
        prompts: How many are continued, greedily and by drawing.
        steps: New tokens of each.
        drafts: How many tokens are drafted, one way after the other.
    """

    exemplars: int
    questions: int
    texts: int
    prompts: int
    steps: int
    drafts: tuple[str | int, ...]


ALL = Asked(len(_EXEMPLARS), 4, 3, 5, 14, ("off", "auto", 5))
FEW = Asked(16, 2, 1, 2, 5, ("off", 5))


class Found(NamedTuple):
    """How a family is run.

    Attributes:
        runners: Of a large and of a small model.
        off: How far log-likelihoods are from the naive ones, per token, at most.
        allowed: How far they may be.
        ties: How many tokens are not the naive ones, but might be with other rounding.
        texts_differ: Which texts are not the naive ones.
    """

    runners: tuple[ModelRunner, ModelRunner]
    off: float
    allowed: float
    ties: int
    texts_differ: list[str]

    @property
    def right(self) -> bool:
        """Whether everything is as the naive reference has it."""
        return self.off <= self.allowed and not self.texts_differ


def examine(three: Trio, quick: bool = False) -> Found:
    """Ask all, or some, of a family's models, and compare with the naive reference."""
    asked = FEW if quick else ALL
    large, small, *_ = three.model.fuser.ensemble.sources
    allowed = 1e-5 + 2 * max(map(_rounding, three.naive.models.values()))
    off = max(*_options(three, asked), *_rolling(three, asked))
    ties, wrong = 0, []
    for where, differs in _texts(three, asked, allowed):
        ties += not differs
        wrong += [where] * differs
    return Found((large, small), off, allowed, ties, list(dict.fromkeys(wrong)))


@torch.no_grad()
def _rounding(model: PreTrainedModel) -> float:
    """How far log-probabilities of a text's tokens move if its embeddings are rounded anew."""
    ids = torch.arange(96)[None] * 37 % 256

    def of_text() -> torch.Tensor:
        log_p = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        return log_p.gather(1, ids[0, 1:, None])

    def moved(module: Any, given: Any, states: torch.Tensor) -> torch.Tensor:
        signs = torch.ones_like(states).cumsum(dim=-1).remainder(2) * 2 - 1
        return states + states * signs * 6e-8

    before = of_text()
    hook = model.get_input_embeddings().register_forward_hook(moved)
    after = of_text()
    hook.remove()
    return float((before - after).abs().max())


def _weighted(three: Trio, **how: Any) -> TriMix:
    whole = three.model.settings.max_length
    return three.weighted("fixed", alpha=ALPHA, beta=BETA, max_length=whole, **how)


def _shown(context: str, asked: Asked) -> str:
    return context.replace(_EXEMPLARS, _EXEMPLARS[-asked.exemplars :])


def _options(three: Trio, asked: Asked) -> Iterable[float]:
    """Log-likelihoods of options, several questions with the same exemplars."""
    questions = QUESTIONS[: asked.questions]
    pairs = [(_shown(context, asked), one) for context, options in questions for one in options]
    for batch_size in (1, 4):
        model = _weighted(three, batch_size=batch_size)
        for pair, score in zip(pairs, model.loglikelihood(pairs), strict=True):
            prompt, target = model.codec.pair(*pair)
            ids = [*prompt.ids, *target]
            fused = three.naive.fused(ids[:-1], ALPHA, BETA)
            nll = float(three.naive.nll(fused, ids, len(prompt.ids)).sum())
            yield abs(score.log_likelihood + nll) / len(target)


def _rolling(three: Trio, asked: Asked) -> Iterable[float]:
    """Log-likelihoods of whole texts, which fit into one window."""
    model, texts = _weighted(three, batch_size=4), TEXTS[: asked.texts]
    for text, score in zip(texts, model.loglikelihood_rolling(texts), strict=True):
        ids = [model.codec.prefix_id, *model.codec.encode(text)]
        nll = float(three.naive.nll(three.naive.fused(ids[:-1], ALPHA, BETA), ids, 1).sum())
        yield abs(score.log_likelihood + nll) / (len(ids) - 1)


@torch.inference_mode()
def _texts(three: Trio, asked: Asked, allowed: float) -> Iterable[tuple[str, bool]]:
    """(which text, whether it is wrong) where a text is not the naive one."""
    both = SamplingParams(asked.steps, STOPS), SamplingParams(asked.steps, STOPS, 1.0, top_p=0.9)
    prompts = [
        (_shown(prompt, asked), dataclasses.replace(params, seed=seed))
        for seed, prompt in enumerate(PROMPTS[: asked.prompts])
        for params in both
    ]
    for batch_size in (1, 4):
        for drafts in asked.drafts:
            model = _weighted(three, batch_size=batch_size, speculative=drafts)
            requests = [model.request(*prompt) for prompt in prompts]
            made = scheduler.generate(model.fuser, requests, batch_size, model.speculation)
            for i, _, output in made:
                params = requests[i].params
                way = "drawn" if params.temperature else "greedy"
                where = f"{way} text {params.seed}, batch {batch_size}, drafts {drafts}"
                if why := _other_end(model.tokenizer, params, output):
                    yield f"{where} {why}", True
                for differs in _other_tokens(three, requests[i], output, allowed):
                    yield where, differs


def _other_end(tokenizer: Any, params: SamplingParams, output: CompletionOutput) -> str:
    """Why a text should not end where it does; that it ends with EOS is seen by its tokens."""
    ids = output.token_ids
    stops = [any(stop in tokenizer.decode(x) for stop in params.stop) for x in (ids, ids[:-1])]
    if stops[1] or (output.finish_reason == "eos" and stops[0]):
        return "goes on after a stop string"
    reason = "stop" if stops[0] else "length" if len(ids) == params.max_new_tokens else "eos"
    return "" if output.finish_reason == reason else "ends for no reason"


def _other_tokens(
    three: Trio, request: Any, output: CompletionOutput, allowed: float
) -> Iterable[bool]:
    """Of each token that the naive reference would not have made next: whether that is wrong.

    It is not if the two change places when they are moved by what log-probabilities may be off.
    """
    prompt, taken = list(request.prompt.ids), list(output.token_ids)
    if output.finish_reason == "eos":
        taken.append(257)
    fused = three.naive.fused([*prompt, *output.token_ids], ALPHA, BETA)[len(prompt) - 1 :]
    for step, token in enumerate(taken):
        naive = int(_next(request.params, step, fused[step]))
        if naive != token:
            moved = fused[step].clone()
            moved[token] += allowed
            moved[naive] -= allowed
            near = {_next(request.params, step, moved, p * allowed) for p in (-1, 0, 1)}
            yield token not in near


def _next(params: SamplingParams, step: int, fused: torch.Tensor, more: float = 0.0) -> int:
    """The token that follows; of those that are drawn from there may be ``more``."""
    params = dataclasses.replace(params, top_p=min(params.top_p + more, 1.0))
    return int(pick(fused[None].clone(), [Draw(params, step)]))


# ---------------------------------------------------------------- the table

COLUMNS = (
    "release",
    "name",
    "remembers",
    "prompts shared",
    "several tokens at once",
    "log-likelihood off by",
    "may be off by",
    "texts",
)
REFUSED_COLUMNS = ("release", "`model_type`", "message")


def remembers(runner: ModelRunner) -> str:
    """What a source keeps of the tokens that it has seen."""
    how = described(runner)
    return f"none ({_reason(runner)})" if how["memory"] == "none" else how["memory"]


def shares(runner: ModelRunner) -> str:
    """Whether rows share prompts, and why not."""
    if runner.shares_prefixes or runner.plain or not runner.why_not:
        return "yes" if runner.shares_prefixes else "no"
    return f"no ({_reason(runner)})"


def several(runner: ModelRunner) -> str:
    """Whether it goes on by several tokens."""
    return "yes" if described(runner)["drafts"] else "no"


def _reason(runner: ModelRunner) -> str:
    """Why a trial failed, the same for models that differ in size only."""
    why = re.sub(r" by \S+ of their size", "", runner.why_not)
    # What an error says may have any marks in it.
    return f"`` {why} ``" if "Error: " in why else why


def row(name: str, found: Found) -> str:
    """A line of the table."""
    large, small = families(name)
    released = large.released
    if large != small:
        released = f"{large.released} large, {small.released} small"
    cells = [released, f"`{name}`"]
    for cell in (remembers, shares, several):
        both = [cell(runner) for runner in found.runners]
        cells.append(both[0] if both[0] == both[1] else f"large: {both[0]}; small: {both[1]}")
    texts = "; ".join(found.texts_differ) or "equal"
    if found.ties:
        texts += f" but for {found.ties} tokens within rounding"
    cells += [f"{found.off:.0e}", f"{found.allowed:.0e}", texts]
    return f"| {' | '.join(cells)} |\n"


def refusal(family: Family) -> str:
    """A line of the table of what is refused."""
    message = "none"
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        write(family.config(3), Path(folder))
        byte_tokenizer().save_pretrained(folder)
        try:
            TriMix.from_pretrained(folder, policy="large_ins", dtype="float32")
        except TrimixError as error:
            message = str(error).splitlines()[0]
    return f"| {family.released} | `{family.name}` | {message} |\n"


def main(names: Sequence[str]) -> None:
    """Examine some families, or all and write the page."""
    rows, refused = [], []
    for name in names or [name for name in [*FAMILIES, *MIXED] if known(name)]:
        if name in REFUSED:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, examine(built(name, Path(folder), byte_tokenizer()))))
        print(rows[-1], end="", flush=True)
    for name in names or [name for name in REFUSED if REFUSED[name].known]:
        if name in REFUSED:
            refused.append(refusal(REFUSED[name]))
            print(refused[-1], end="", flush=True)
    if not names:
        page = PAGE.read_text(encoding="utf-8")
        version = f"transformers {transformers.__version__}"
        page = re.sub(r"transformers \d+\.\d+\.\d+", version, page)
        page = with_table(page, COLUMNS, rows)
        PAGE.write_text(with_table(page, REFUSED_COLUMNS, refused), encoding="utf-8")


def known(name: str) -> bool:
    """Whether this version of transformers has the families of a row."""
    return all(family.known for family in families(name))


def with_table(page: str, columns: Sequence[str], rows: Sequence[str]) -> str:
    """The page with these rows in its table of these columns."""
    head = f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n"
    before, _, rest = page.partition(head)
    return before + head + "".join(rows) + re.sub(r"\A(?:\|.*\n)*", "", rest)


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    main(sys.argv[1:])
