"""Models that also see or hear: their text models alone are loaded, and give the wrappers' logits.

Each is written as released, under both names that tensors have there, and compared with the whole
wrapper's own forward on a text.
"""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import byte_tokenizer
from trimix_lm_eval import TriMix
from trimix_lm_eval.loading import models, preflight
from trimix_lm_eval.loading.settings import Settings, SourceSpec
from trimix_lm_eval.loading.text_part import text_part
from trimix_lm_eval.utils import errors
from trimix_lm_eval.utils.errors import TrimixError

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 272,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
SEEN = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CLIP = {**SEEN, "intermediate_size": 32, "image_size": 28, "patch_size": 14}
QWEN = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}
IDS = {"image_token_id": 270, "video_token_id": 269, "vision_start_token_id": 268}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
#: By model type: the text config, that of what else there is, and fields of the whole.
WRAPPERS = {
    "mistral3": ({"model_type": "mistral", "head_dim": 8}, CLIP, {}),
    "llava": ({"model_type": "llama"}, {**CLIP, "model_type": "clip_vision_model"}, {}),
    "gemma3": ({"head_dim": 8, "sliding_window": 5}, CLIP, {"mm_tokens_per_image": 4}),
    "idefics3": ({"model_type": "llama"}, CLIP, {}),
    "qwen2_5_vl": (
        {"rope_parameters": MROPE},
        {**QWEN, "out_hidden_size": 32, "fullatt_block_indexes": [0]},
        IDS,
    ),
    "qwen3_vl": (
        {"head_dim": 8, "rope_parameters": MROPE},
        {**QWEN, "out_hidden_size": 32, "deepstack_visual_indexes": [0]},
        IDS,
    ),
    "qwen3_vl_moe": (
        {**EXPERTS, "head_dim": 8, "rope_parameters": MROPE},
        {**QWEN, "out_hidden_size": 32, "deepstack_visual_indexes": [0]},
        IDS,
    ),
    "voxtral": (
        {"model_type": "llama", "head_dim": 8},
        {**SEEN, "intermediate_size": 32},
        {"audio_token_id": 270},
    ),
}
LAYOUTS = ("as saved", "new names")


def build(folder, kind, layout="as saved", tie=False):
    """Write a wrapper with random weights; returns it."""
    text, seen, more = WRAPPERS[kind]
    other = "audio_config" if kind == "voxtral" else "vision_config"
    config = AutoConfig.for_model(kind, text_config={**TEXT, **text}, **{other: seen}, **more)
    config.tie_word_embeddings = tie
    torch.manual_seed(5)
    auto = "MultimodalLM" if kind == "voxtral" else "ImageTextToText"
    model = getattr(transformers, f"AutoModelFor{auto}").from_config(config).eval()
    for tensor in model.parameters():
        tensor.data += 0.05 * torch.randn_like(tensor)
    model.save_pretrained(folder)
    if layout == "new names":
        tied = {"lm_head.weight"} if tie else set()
        kept = {key: one for key, one in model.state_dict().items() if key not in tied}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
    byte_tokenizer().save_pretrained(folder)
    return model


def spec_of(folder):
    return SourceSpec("large_ins", str(folder), dtype="float32")


def check(folder):
    asked = Settings({"large_ins": spec_of(folder)})
    return preflight.check(asked, asked.sources)


def refusal(call, folder):
    with pytest.raises(TrimixError) as caught:
        call(folder)
    return str(caught.value)


def load(folder):
    return models.load_model(spec_of(folder), "cpu")


@torch.inference_mode()
def logits(model):
    ids = torch.arange(24)[None] * 7 % 250 + 3
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", WRAPPERS)
def test_text_model_gives_the_wrappers_logits(kind, layout, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(errors, "_warned", set())
    if kind not in transformers.CONFIG_MAPPING or (
        kind == "voxtral" and not hasattr(transformers, "AutoModelForMultimodalLM")
    ):
        pytest.skip("not in this version of transformers")
    whole = build(tmp_path, kind, layout)
    alone = load(tmp_path)
    assert float((logits(alone) - logits(whole)).abs().max()) < 1e-6
    # What is not read is not missed.
    assert "no place" not in caplog.text and "UNEXPECTED" not in caplog.text
    names = {name for name, _ in alone.named_parameters()}
    assert not any("vision" in name or "visual" in name or "audio" in name for name in names)
    (estimate,) = check(tmp_path).estimates
    count = sum(one.numel() for one in alone.parameters())
    assert estimate.parameters == count < sum(one.numel() for one in whole.parameters())
    assert estimate.weights == 4 * count and estimate.cache == 2 * 4 * 2 * 2 * 8


@pytest.mark.parametrize("kind", ["aya_vision", "cohere2_vision"])
def test_a_text_model_scales_its_logits_as_released(kind, tmp_path):
    """The wrappers did by a causal LM inside; since they have a head of their own, they do not."""
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip("not in this version of transformers")
    text = {**TEXT, "model_type": "cohere2", "bos_token_id": 1, "eos_token_id": 2}
    seen = {**CLIP, "model_type": "siglip_vision_model"}
    config = AutoConfig.for_model(kind, text_config=text, vision_config=seen)
    whole = transformers.AutoModelForImageTextToText.from_config(config).eval()
    whole.save_pretrained(tmp_path)
    scale = config.text_config.logit_scale
    assert scale != 1
    assert float((logits(load(tmp_path)) - scale * logits(whole)).abs().max()) < 1e-6


@pytest.mark.parametrize("kind", ["mistral3", "qwen3_vl"])
def test_a_wrappers_head_may_be_tied(kind, tmp_path):
    whole = build(tmp_path, kind, "new names", tie=True)
    alone = load(tmp_path)
    assert float((logits(alone) - logits(whole)).abs().max()) < 1e-6
    assert alone.get_output_embeddings().weight is alone.get_input_embeddings().weight


@pytest.mark.parametrize("kind", ["mistral3", "qwen3_vl"])
def test_tensors_of_the_text_that_lack_or_have_no_place(kind, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(errors, "_warned", set())
    build(tmp_path, kind, "new names")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    file_of = "model.language_model.layers.{}.mlp.up_proj.weight"
    extra = {**tensors, file_of.format(7): torch.ones(2)}
    save_file(extra, file, {"format": "pt"})
    load(tmp_path)
    assert "no place for 1 tensors of its files: " in caplog.text
    del tensors[file_of.format(1)]
    save_file(tensors, file, {"format": "pt"})
    message = refusal(load, tmp_path)
    assert "lack 1 of" in message and "layers.1.mlp.up_proj.weight" in message


def test_a_text_part_is_run_with_a_cache_and_saved_under_its_own_names(tmp_path):
    build(tmp_path, "mistral3")
    model = TriMix.from_pretrained(str(tmp_path), policy="large_ins", dtype="float32")
    (source,) = model.fuser.ensemble.sources
    assert not source.plain and source.shares_prefixes
    source.model.save_pretrained(tmp_path / "saved")
    names = load_file(tmp_path / "saved" / "model.safetensors")
    assert "model.layers.0.mlp.up_proj.weight" in names
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(source.model))


def test_a_text_part_whose_wrapper_needs_a_library(tmp_path):
    """Gemma 3n sees with a model of timm, which its text needs no more than its logits do."""
    text = {**TEXT, "head_dim": 8, "hidden_size_per_layer_input": 8, "laurel_rank": 4}
    text |= {"vocab_size_per_layer_input": 272, "num_kv_shared_layers": 0}
    text |= {"layer_types": ["full_attention"] * 2, "activation_sparsity_pattern": [0.0] * 2}
    config = transformers.Gemma3nConfig(text_config=text)
    torch.manual_seed(6)
    alone = AutoModelForCausalLM.from_config(config.text_config).eval()
    inside = {
        f"model.language_model.{key.removeprefix('model.')}": one
        for key, one in alone.state_dict().items()
        if key.startswith("model.")
    }
    inside["model.vision_tower.timm_model.conv_stem.conv.weight"] = torch.ones(2)
    inside["model.embed_vision.embedding.weight"] = torch.ones(2)
    config.save_pretrained(tmp_path)
    save_file(inside, tmp_path / "model.safetensors", {"format": "pt"})
    byte_tokenizer().save_pretrained(tmp_path)
    check(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(alone))


@pytest.mark.parametrize("kind", ["mistral3", "qwen3_vl"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_text_of_quantized_files_is_counted_alone(kind, layout, tmp_path):
    """Its bytes are those of its tensors as they are stored."""
    build(tmp_path, kind, layout)
    config = text_part(AutoConfig.from_pretrained(tmp_path)).config
    config.quantization_config = {"quant_method": "any"}
    spec = spec_of(tmp_path)
    files = preflight.access.locate(spec)
    found = preflight.memory.estimate(spec, config, files, "cpu")
    assert found.precision == "as stored" and found.weights == 4 * found.parameters
    assert found.weights < files.weight_bytes


@pytest.mark.parametrize("kind", ["blip", "kosmos-2"])
def test_a_wrapper_without_a_text_model_of_its_own(kind, tmp_path):
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    save_file({}, tmp_path / "model.safetensors")
    byte_tokenizer().save_pretrained(tmp_path)
    assert "has no text model that runs by itself" in refusal(check, tmp_path)


def test_what_stands_beside_a_text_config_holds_for_it(tmp_path):
    left_out = {"modules_to_not_convert": ["model.language_model.lm_head", "vision_tower"]}
    quantized = {"quant_method": "fp8", **left_out}
    text = {**TEXT, "model_type": "mistral", "tie_word_embeddings": False}
    config = AutoConfig.for_model("mistral3", text_config=text, vision_config=CLIP)
    for name, value in (("dtype", "bfloat16"), ("tie_word_embeddings", True)):
        setattr(config, name, value)
    config.quantization_config = quantized
    config.save_pretrained(tmp_path)
    part = text_part(AutoConfig.from_pretrained(tmp_path))
    assert str(part.config.dtype) == "torch.bfloat16" and part.config.tie_word_embeddings
    kept = part.config.quantization_config["modules_to_not_convert"]
    assert kept == ["lm_head", "vision_tower"]
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mistral3"
    assert text_part(part.config).config is part.config
