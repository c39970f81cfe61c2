"""Files of a model that are damaged, cut off or lack: refused by name before anything is computed.

The model is a pico one; each test damages a copy.
"""

import json
import os
import shutil
import types

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from tests.support import families, hostile_values
from trimix_lm_eval import TriMix
from trimix_lm_eval.loading import hub, models, preflight
from trimix_lm_eval.loading.preflight.context import context_of
from trimix_lm_eval.loading.settings import Settings, SourceSpec
from trimix_lm_eval.utils import errors
from trimix_lm_eval.utils.errors import TrimixError

BAD_JSON = [b"", b"{", b"[]", b"5", b"null", b'"x"', b"\xff\xfe\x00", b"[" * 100_000]
JSON_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "adapter_config.json",
]


@pytest.fixture
def folder(pico, tmp_path):
    """A copy of a model."""
    made = tmp_path / "model"
    shutil.copytree(pico("llama")["large_ins"], made)
    return made


def check(folder):
    """Check the folder as a run would."""
    asked = Settings({"large_ins": SourceSpec("large_ins", str(folder))})
    return preflight.check(asked, asked.sources)


def load(folder):
    """Load the model as a run would."""
    return models.load_model(SourceSpec("large_ins", str(folder)), "cpu")


@pytest.mark.skipif("lfm2_moe" not in CONFIG_MAPPING_NAMES, reason="needs a newer transformers")
@pytest.mark.parametrize("damage", [None, float("nan")])
def test_buffers_that_are_learned_are_there_and_finite(tmp_path, damage):
    """The bias by which experts are picked is no parameter, and never reaches the logits itself."""
    families.write(families.FAMILIES["lfm2_moe"].config(2), tmp_path)
    assert load(tmp_path) is not None
    stored = load_file(tmp_path / "model.safetensors")
    (name,) = (name for name in stored if name.endswith("expert_bias"))
    bias = stored.pop(name)
    if damage is not None:
        stored[name] = torch.full_like(bias, damage)
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    assert name in refusal(load, tmp_path)


def refusal(call, folder):
    """The message in which something ends; it tells what to do."""
    with pytest.raises(TrimixError) as caught:
        call(folder)
    assert "large_ins" in str(caught.value) and "\n  -> " in str(caught.value)
    return str(caught.value)


def change(folder, edit):
    """Edit the tensors of the model, by name."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def write(folder, name, **values):
    """Change keys of a JSON file; None takes one away."""
    content = json.loads((folder / name).read_text()) | values
    kept = {key: value for key, value in content.items() if value is not None}
    (folder / name).write_text(json.dumps(kept))


DOWN = "model.layers.0.mlp.down_proj.weight"


def test_a_whole_model_is_loaded(folder):
    check(folder)
    assert not load(folder).training


@pytest.mark.parametrize("gone", [DOWN, "model.norm.weight", "model.embed_tokens.weight"])
def test_tensors_that_lack_are_named_and_not_made_up(folder, gone):
    change(folder, lambda tensors: tensors.pop(gone))
    assert f"tensors: {gone}" in refusal(load, folder)


def test_a_head_that_is_tied_may_lack(folder):
    write(folder, "config.json", tie_word_embeddings=True)
    change(folder, lambda tensors: tensors.pop("lm_head.weight"))
    load(folder)


def test_a_head_that_is_not_tied_may_not(folder):
    change(folder, lambda tensors: tensors.pop("lm_head.weight"))
    assert "lack 1 of" in refusal(load, folder)


def test_tensors_of_another_shape(folder):
    change(folder, lambda tensors: tensors.update({DOWN: tensors[DOWN][:-1].clone()}))
    message = refusal(load, folder)
    assert f"{DOWN} [47, 64] for [48, 64]" in message


def test_an_expert_that_lacks_or_is_of_another_shape(pico, tmp_path):
    """Experts are put together at loading, where transformers names neither tensor nor file."""
    made = tmp_path / "model"
    shutil.copytree(pico("mixtral")["large_ins"], made)
    whole = load_file(made / "model.safetensors")
    one = next(name for name in whole if ".experts.2." in name)
    change(made, lambda tensors: tensors.update({one: tensors[one][:-1].clone()}))
    message = refusal(load, made)
    assert f"{one} in {made / 'model.safetensors'} is [" in message and "the others [" in message
    change(made, lambda tensors: tensors.pop(one))
    assert f"there is no {one} in {made / 'model.safetensors'}" in refusal(load, made)


def test_tensors_without_a_place_are_told(folder, caplog, monkeypatch):
    monkeypatch.setattr(errors, "_warned", set())
    extra = {
        "model.layers.9.mlp.up_proj.weight": torch.ones(2),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
    }
    change(folder, lambda tensors: tensors.update(extra))
    load(folder)
    assert "no place for 1 tensors of its files: model.layers.9.mlp.up_proj" in caplog.text


@pytest.mark.parametrize(
    ("dtype", "told"), [(torch.int8, "I8"), (torch.uint8, "U8"), (torch.float8_e4m3fn, "F8_E4M3")]
)
def test_quantized_weights_whose_config_knows_nothing_of_it(folder, dtype, told):
    change(folder, lambda tensors: tensors.update({DOWN: tensors[DOWN].to(dtype)}))
    message = refusal(load, folder)
    assert f"{DOWN} in {folder / 'model.safetensors'} is stored as {told}, and" in message
    assert "quantization_config" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(folder, value):
    change(folder, lambda tensors: tensors[DOWN].view(-1)[:1].fill_(value))
    assert f"NaN or infinite in 1 tensors: {DOWN}" in refusal(load, folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda whole: b"", "is empty"),
        (lambda whole: whole[:100], "is damaged or cut off"),
        (lambda whole: whole[:-10], "is damaged or cut off"),
        (lambda whole: whole[:20] + os.urandom(40) + whole[60:], "is damaged or cut off"),
        (lambda whole: b"\xff" * 8 + b"{}", "is damaged or cut off"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_safetensors_that_are_damaged(folder, content, said):
    file = folder / "model.safetensors"
    file.write_bytes(content(file.read_bytes()))
    message = refusal(check, folder)
    assert said in message and str(file) in message


class Evil:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("unpickled",))


def test_pickles(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save(tensors, file)
    load(folder)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refusal(load, folder)
    file.write_bytes(b"\x80\x04rubbish")
    refusal(load, folder)
    torch.save([1, 2], file)
    refusal(load, folder)
    torch.save({"a": Evil()}, file)
    message = refusal(load, folder)
    assert "weights_only" not in message and ".safetensors" in message
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_that_is_damaged(folder, name):
    for content in BAD_JSON:
        (folder / name).write_bytes(content)
        assert str(folder / name) in refusal(check, folder)


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": 5}', '{"weight_map": {"a": 5}}', '{"weight_map": {}}']
)
def test_an_index_that_is_damaged(folder, index):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refusal(check, folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", *JSON_FILES[1:]])
def test_files_that_are_none(folder, tmp_path, name):
    """A pipe and a device would be read for ever; a loop was passed over in silence."""
    for path in hostile_values.files(tmp_path).values():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(path)
        refusal(check, folder)


@pytest.mark.parametrize("value", [-1, 0, 1, 10**30])
def test_a_context_length_that_is_none(folder, value):
    write(folder, "config.json", max_position_embeddings=value)
    assert f"max_position_embeddings={value}" in refusal(check, folder)


@pytest.mark.parametrize("value", [None, 1.5, "x", [], True])
def test_a_context_length_of_another_type(folder, value):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"max_position_embeddings": value}))
    if value is None and takes_none():
        check(folder)  # a length that is not given: the tokenizer has one
    else:
        assert "max_position_embeddings" in refusal(check, folder)


def takes_none():
    """Whether a config of this version of transformers may have no context length."""
    try:
        return LlamaConfig(max_position_embeddings=None).max_position_embeddings is None
    except Exception:  # of a kind that only newer versions have
        return False


@pytest.mark.parametrize("value", [1.5, 0, -1.0, float("nan"), "x"])
def test_a_tokenizers_context_length_that_is_none(folder, value):
    """Where the config has none; a fraction was looked for among all numbers, for ever."""
    config = PretrainedConfig()
    with pytest.raises(TrimixError, match=r"model_max_length=.* is no number of tokens"):
        context_of(config, types.SimpleNamespace(model_max_length=value))


def test_a_model_without_layers(folder):
    write(folder, "config.json", num_hidden_layers=0)
    assert "num_hidden_layers=0" in refusal(check, folder)


def test_a_tokenizer_without_eos(folder):
    write(folder, "tokenizer_config.json", eos_token=None, bos_token=None)
    assert "no token that ends a text" in refusal(check, folder)


def test_all_sources_that_cannot_be_had_are_named(tmp_path):
    names = ("large_ins", "small_cpt", "small_base")
    asked = Settings({name: SourceSpec(name, str(tmp_path / name)) for name in names})
    with pytest.raises(TrimixError) as caught:
        preflight.check(asked, asked.sources)
    for name in names:
        assert f"{name}: the folder {tmp_path / name} does not exist." in str(caught.value)


def test_logits_that_are_no_numbers_are_told_as_such(folder):
    """And not as masks that are not followed."""
    change(folder, lambda tensors: tensors["model.norm.weight"].fill_(3e38))
    message = refusal(lambda path: TriMix.from_pretrained(str(path), policy="large_ins"), folder)
    assert "gives logits that are NaN" in message


def test_a_hub_that_is_silent_is_asked_once_and_not_for_files(tmp_path, monkeypatch):
    """The client would try for half a minute, for each file."""

    def silent(*_, **__):
        raise ConnectionError

    def only_cached(*_, local_files_only, **__):
        assert local_files_only
        raise hub.LocalEntryNotFoundError("not there")

    monkeypatch.setattr(hub.HfApi, "repo_info", silent)
    monkeypatch.setattr(hub, "hf_hub_download", only_cached)
    asked = Settings({name: SourceSpec(name, f"org/{name}") for name in ("large_ins", "small_cpt")})
    with pytest.raises(TrimixError) as caught:
        preflight.check(asked, asked.sources)
    for name in asked.sources:
        assert f"{name} (org/{name}): the Hub cannot be reached (Connect" in str(caught.value)
