"""The preflight: what it accepts, what it refuses and in which words. No weight is ever read.

Models are configs and tokenizers on disk beside an empty file of weights. The Hub is a server in
this process that answers as the real one does; the client is the real one, in a subprocess.
"""

import json
import logging

import pytest
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    Gemma3Config,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    T5Config,
)

from tests.support.hub import COMMIT, Hub, client
from tests.support.permuted import renumbered, shuffled
from trimix_lm_eval import TriMix, cli
from trimix_lm_eval.harness import check as harness_check
from trimix_lm_eval.loading import preflight
from trimix_lm_eval.loading.preflight import memory
from trimix_lm_eval.loading.preflight.relation import fused_size, trusted
from trimix_lm_eval.loading.preflight.vocabulary import Difference, Vocabulary, differences
from trimix_lm_eval.loading.settings import Settings, SourceSpec
from trimix_lm_eval.utils import errors
from trimix_lm_eval.utils.errors import TrimixError

TEXTS = ["hello world, how are you", "the lazy dog and the quick fox"] * 5


def tokenizer(texts=TEXTS, size=290, special=(), ordinary=()):
    """A byte-level BPE tokenizer with one special token, and more of both kinds at its end."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
        ),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>")
    made.add_tokens(list(special), special_tokens=True)
    made.add_tokens(list(ordinary))
    return made


def no_weights(path):
    """A file of weights that is whole, and holds none."""
    if path.suffix == ".safetensors":
        save_file({}, path)
    else:
        path.write_bytes(b"weights")


def save(folder, tok=None, config=None, weights="model.safetensors", **changes):
    """Write a model without weights; return its folder's name."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is None:
        config = LlamaConfig(
            **{
                "vocab_size": 320,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 64,
                "dtype": "bfloat16",
                "architectures": ["LlamaForCausalLM"],
                **changes,
            }
        )
    config.save_pretrained(folder)
    if tok is not None:
        tok.save_pretrained(folder)
    if weights:
        no_weights(folder / weights)
    return str(folder)


def settings(large, small=None, **options):
    """Settings for one or two sources; options with a double underscore belong to a source."""
    own = {name.partition("__")[2]: v for name, v in options.items() if "__" in name}
    run = {name: v for name, v in options.items() if "__" not in name}
    sources = {"large_ins": SourceSpec("large_ins", large, **own)}
    if small:
        sources["small_cpt"] = SourceSpec("small_cpt", small)
    return Settings(sources, **run)


def check(*args, **options):
    """Check settings in which every source is needed."""
    asked = settings(*args, **options)
    return preflight.check(asked, asked.sources)


def refusal(*args, **options):
    """The message that a check ends in."""
    with pytest.raises(TrimixError) as caught:
        check(*args, **options)
    return str(caught.value)


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


@pytest.fixture
def warnings(caplog, monkeypatch):
    """What was warned about, as one text."""
    monkeypatch.setattr(errors, "_warned", set())
    caplog.set_level(logging.WARNING, logger="trimix_lm_eval")
    return caplog


# ------------------------------------------------------------------------ a good run


def test_report(tmp_path, tok, warnings):
    large = save(tmp_path / "large", tok, vocab_size=384, max_position_embeddings=128)
    small = save(tmp_path / "small", tok)
    report = check(large, small)
    assert list(report.configs) == ["large_ins", "small_cpt"]
    assert report.commits == {"large_ins": None, "small_cpt": None}
    assert report.contexts.sources == {"large_ins": 128, "small_cpt": 64}
    assert report.max_length == 64
    assert report.vocab_size == len(tok) == 290  # not the padding of either embedding
    assert report.unused_ids == ()
    assert report.tokenizer.get_vocab() == tok.get_vocab()
    text = "\n".join(report.lines())
    assert "context: 64 tokens (large_ins 128, small_cpt 64)" in text
    assert "vocabulary: 290 token ids are fused" in text
    assert "large_ins: a local folder" in text
    assert "large_ins: vocabulary same; fused token by token" in text
    assert "small_cpt: vocabulary padded: its embedding has 320 rows, not 384; fused" in text
    assert not warnings.records


def test_large_ins_may_stay_unloaded_but_lends_its_tokenizer(tmp_path, tok):
    asked = settings(save(tmp_path / "large", tok), save(tmp_path / "small"))
    report = preflight.check(asked, ["small_cpt"])
    assert list(report.configs) == ["small_cpt"] and report.vocab_size == 290


def test_the_tokenizer_that_was_found_stays_as_it_is(pico):
    """Runs at one commit share it."""
    model = TriMix.from_pretrained(pico()["large_ins"], policy="large_ins", add_bos_token=True)
    assert model.tokenizer.add_bos_token and not model.report.tokenizer.add_bos_token
    assert model.report.tokenizer is not model.tokenizer


def test_max_length_as_given(tmp_path, tok, warnings):
    large = save(tmp_path / "large", tok)
    assert check(large, max_length=32).max_length == 32
    assert not warnings.records
    assert check(large, max_length=100).max_length == 100
    assert "max_length=100 is more than large_ins was made for (64 tokens)" in warnings.text


def long_rope(folder, tok, original, longest=64):
    """A model whose rotary embedding has factors for short texts and for long ones."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    fields = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    lengths = {
        "max_position_embeddings": longest,
        "original_max_position_embeddings": original,
        "pad_token_id": 0,
    }
    return save(folder, tok, Phi3Config(**fields, **lengths, rope_parameters=rope, vocab_size=300))


def test_a_context_that_is_cut_for_its_rope_is_told(tmp_path, tok, warnings):
    large = long_rope(tmp_path / "large", tok, 16)
    report = check(large)
    assert report.max_length == 16 and not report.contexts.long
    assert "context: 16 tokens (large_ins 16 of 64)" in report.lines()
    assert "The context is 16 tokens, not the 64 that large_ins was made for" in warnings.text
    assert "max_length= up to 64 runs every text with the factors for long ones" in warnings.text
    warnings.clear()
    report = check(large, max_length=48)
    assert report.max_length == 48 and report.contexts.long == {"large_ins"}
    line = "context: 48 tokens (large_ins 64 with the factors for long texts)"
    assert line in report.lines() and not warnings.records
    assert not check(large, max_length=16).contexts.long


def test_sources_that_disagree_about_their_ropes_factors(tmp_path, tok):
    large = long_rope(tmp_path / "large", tok, 16)
    small = long_rope(tmp_path / "small", tok, 32)
    message = refusal(large, small, max_length=24)
    assert "more than large_ins can read" in message and "give at most 16" in message
    assert check(large, small, max_length=48).contexts.long == {"large_ins", "small_cpt"}
    assert check(large, small, max_length=16).max_length == 16


# ------------------------------------------------------------------------ local folders


def test_folder_that_does_not_exist(tmp_path):
    message = refusal(str(tmp_path / "nowhere"))
    assert f"large_ins: the folder {tmp_path}/nowhere does not exist" in message
    assert "-> correct the path" in message


def test_folder_without_config(tmp_path):
    assert "has no config.json: it is not a transformers model" in refusal(str(tmp_path))
    (tmp_path / "cpt").mkdir()
    (tmp_path / "cpt" / "run.json").write_text("{}")
    assert "its training has not finished" in refusal(str(tmp_path))


@pytest.mark.parametrize("text", ['{"model_type": ', "[1, 2]", "\udcff"])
def test_config_that_is_not_json(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    no_weights(tmp_path / "model.safetensors")
    message = refusal(str(tmp_path))
    assert "is not readable JSON" in message or "is JSON, but not a mapping" in message
    assert "copy or download the file again" in message


def test_folder_without_weights(tmp_path, tok):
    message = refusal(save(tmp_path, tok, weights=None))
    assert "has a config.json but no weights" in message


def test_folder_that_lacks_a_shard(tmp_path, tok):
    folder = save(tmp_path, tok, weights="a-1.safetensors")
    shards = {"x": "a-1.safetensors", "y": "a-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "lacks 1 of 2 files of weights, first 'a-2.safetensors'." in refusal(folder)


def test_subfolder(tmp_path, tok):
    save(tmp_path / "inside", tok)
    assert check(str(tmp_path), large__subfolder="inside").vocab_size == 290


# ------------------------------------------------------------------------ configs


def test_encoder_decoder(tmp_path):
    message = refusal(save(tmp_path, config=T5Config(d_model=8, num_layers=1)))
    assert "is an encoder-decoder (model_type 't5'), not a causal LM" in message


def test_masked_lm(tmp_path):
    config = BertConfig(hidden_size=8, architectures=["BertForMaskedLM"])
    message = refusal(save(tmp_path, config=config))
    assert "was saved as BertForMaskedLM: it has no next-token head" in message


def test_other_kind_of_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    no_weights(tmp_path / "model.safetensors")
    message = refusal(str(tmp_path))
    assert "AutoModelForCausalLM has no class for model_type 'vit'" in message


def test_unknown_model_type(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "tomorrow"}')
    no_weights(tmp_path / "model.safetensors")
    message = refusal(str(tmp_path))
    assert "cannot read its config (model_type 'tomorrow')" in message
    assert "pip install -U transformers" in message


def test_code_of_its_own(tmp_path):
    code = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.Y"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": code}))
    no_weights(tmp_path / "model.safetensors")
    message = refusal(str(tmp_path))
    assert "needs Python code from its repository" in message
    assert "large_ins_trust_remote_code=true (trust_remote_code=true for all" in message


def test_libraries_that_are_not_installed(tmp_path, tok, monkeypatch):
    monkeypatch.setattr(preflight.configs, "find_spec", lambda name: None)
    folder = save(tmp_path, tok)
    message = refusal(folder, large__quantization="nf4")
    assert "quantization=nf4 needs bitsandbytes" in message
    assert "pip install 'trimix-lm-eval[quant]'" in message
    no_weights(tmp_path / "x.gguf")
    message = refusal(folder, large__gguf_file="x.gguf")
    assert "reading x.gguf needs the library gguf" in message and "pip install gguf" in message


def test_nested_config_and_experts(tmp_path, tok):
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    text = {**size, "vocab_size": 320, "intermediate_size": 64, "max_position_embeddings": 48}
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    nested = Gemma3Config(text_config=text, vision_config=vision)
    experts = MixtralConfig(**text, num_key_value_heads=2, num_local_experts=4)
    large = save(tmp_path / "large", tok, nested)
    report = check(large, save(tmp_path / "small", tok, experts))
    assert report.contexts.sources == {"large_ins": 48, "small_cpt": 48}
    assert report.vocab_size == 290
    assert all(e.parameters and e.weights and e.cache for e in report.estimates)


def test_quantized_checkpoint(tmp_path, tok):
    stored = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
    folder = save(tmp_path, tok, quantization_config=stored)
    assert "is already quantized (awq)" in refusal(folder, large__quantization="int8")
    try:
        import gptqmodel  # noqa: F401
    except ImportError:
        message = refusal(folder)
        assert "is quantized with awq, which cannot be used here" in message
        assert "pip install gptqmodel" in message


# ------------------------------------------------------------------------ tokenizers


def test_differences():
    a = {"a": 0, "b": 1, "c": 2}
    assert differences(a, dict(reversed(a.items()))) == []
    assert differences(a, {"a": 0, "x": 1, "y": 2}, 1) == [Difference(1, "b", "x")]
    assert differences(a, {"a": 0, "b": 1}) == [Difference(2, "c", None)]
    assert differences({}, a) == [Difference(i, None, token) for token, i in a.items()]
    assert differences({"b": 1}, a, 1) == [Difference(0, None, "a")]
    assert differences({"a": 0, "b": 0}, {"a": 0}) == [Difference(0, "b", "a")]
    assert differences({"a": 1, "b": 0}, {"a": 0, "b": 1}) == [
        Difference(0, "b", "a"),
        Difference(1, "a", "b"),
    ]


def test_another_tokenizer_names_the_first_tokens_and_both_models(tmp_path, tok):
    other = tokenizer(["zebra crossing, zebra quagga"] * 9)
    large, small = save(tmp_path / "large", tok), save(tmp_path / "small", other)
    one, two, three = differences(tok.get_vocab(), other.get_vocab())
    message = refusal(large, small)
    assert message.startswith(f"small_cpt ({small}): vocabulary other: ")
    assert (
        f"token {one.id} is {one.b!r} in small_cpt ({small}) but {one.a!r} in large_ins ({large}); "
        f"{two.id} is {two.b!r} but {two.a!r}; {three.id} is {three.b!r} but {three.a!r}."
        in message
    )
    assert "-> possible: only fusion=sequence" in message


def test_renamed_special_tokens_do_not_matter(tmp_path, warnings):
    large = save(tmp_path / "large", tokenizer(special=["<|turn|>"]))
    small = save(tmp_path / "small", tokenizer(special=["<pad>"]))
    assert check(large, small).vocab_size == 291
    assert not warnings.records


def test_special_tokens_of_the_large_model_only(tmp_path, tok, warnings):
    large = save(tmp_path / "large", tokenizer(special=["<|turn|>", "<|end|>"]))
    assert check(large, save(tmp_path / "small", tok)).vocab_size == 290
    assert "has 2 token(s) at its end" in warnings.text
    assert "end-of-text" not in warnings.text


def test_end_of_text_that_the_small_model_lacks(tmp_path, tok, warnings):
    made = tokenizer(special=["<|turn|>"])
    made.eos_token = "<|turn|>"
    check(save(tmp_path / "large", made), save(tmp_path / "small", tok))
    assert "generation ends only at stop strings" in warnings.text


def test_words_added_to_the_small_model_only(tmp_path, tok, warnings):
    large = save(tmp_path / "large", tok)
    small = save(tmp_path / "small", tokenizer(ordinary=["བོད"]))
    message = refusal(large, small)
    assert f"token 290 is 'བོད' in small_cpt ({small}) but absent in large_ins" in message
    sequence, tokens = message.partition("-> possible: ")[2].split("; or ")
    assert sequence.startswith("fusion=sequence with one point for all (policy=fixed,")
    assert f"token by token over the 290 shared ids with tokenizer={large}, biased: " in tokens
    assert f"small_cpt ({small}) then reads segmentations that it was not trained on" in tokens
    assert not warnings.text
    report = check(large, small, tokenizer=large)
    assert report.vocab_size == 290
    assert "has 1 ordinary token(s) at its end" in warnings.text
    assert f"biased: small_cpt ({small}) then reads segmentations" in warnings.text
    assert "1.9 to 2.6 bits per byte" in warnings.text
    assert any("vocabulary extended" in line and "biased" in line for line in report.lines())


def test_words_added_to_the_large_model_only(tmp_path, tok):
    large = save(tmp_path / "large", tokenizer(ordinary=["བོད"]))
    small = save(tmp_path / "small", tok)
    message = refusal(large, small)
    assert "token 290 is absent in small_cpt" in message
    assert f"with tokenizer={small}, biased: large_ins ({large})" in message
    assert check(large, small, tokenizer=small).vocab_size == 290
    assert f"tokenizer={small}, biased" in refusal(large, small, tokenizer=large)


def test_same_tokens_cut_differently(tmp_path, tok, warnings):
    other = tokenizer()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    large, small = save(tmp_path / "large", tok), save(tmp_path / "small", other)
    message = refusal(large, small)
    assert "cuts texts otherwise: " in message and " is [" in message
    assert f"tokenizer={large}, biased: small_cpt ({small})" in message
    report = check(large, small, tokenizer=large)
    assert report.vocab_size == 290
    line = next(line for line in report.lines() if line.startswith("small_cpt: vocabulary"))
    assert "; fused token by token over the 290 shared ids; biased: " in line
    assert "As tokenizer= says" in warnings.text and "biased: small_cpt" in warnings.text


def test_same_tokens_under_other_ids(tmp_path, tok, warnings):
    large = save(tmp_path / "large", tok)
    own = shuffled(320, 1)[:290]
    report = check(large, save(tmp_path / "small", renumbered(tok, own)))
    assert (report.vocab_size, report.unused_ids) == (290, ())
    assert report.relations["small_cpt"].own_ids == tuple(own)
    assert report.relations["large_ins"].own_ids is None
    line = next(line for line in report.lines() if line.startswith("small_cpt: vocabulary"))
    assert line.startswith("small_cpt: vocabulary permuted: it has the tokens of large_ins")
    assert line.endswith("; fused token by token through a map of ids, exactly")
    assert not warnings.records


def test_all_that_cannot_be_fused_is_told_at_once(tmp_path, tok):
    folders = {
        "large_ins": save(tmp_path / "large", tok),
        "small_cpt": save(tmp_path / "cpt", tokenizer(ordinary=["བོད"])),
        "small_base": save(tmp_path / "base", tokenizer(["zebra crossing, zebra quagga"] * 9)),
    }
    asked = Settings({name: SourceSpec(name, folder) for name, folder in folders.items()})
    with pytest.raises(TrimixError) as caught:
        preflight.check(asked, asked.sources)
    first, one, second, two = str(caught.value).splitlines()
    assert first.startswith(f"small_cpt ({folders['small_cpt']}): vocabulary extended")
    assert second.startswith(f"small_base ({folders['small_base']}): vocabulary other")
    assert one.startswith("  -> possible: fusion=sequence") and "tokenizer=" in one
    assert two.startswith("  -> possible: only fusion=sequence") and "tokenizer=" not in two


def test_source_without_tokenizer(tmp_path, tok, warnings):
    large = save(tmp_path / "large", tok)
    assert check(large, save(tmp_path / "small")).vocab_size == 290
    assert "comes without a tokenizer" in warnings.text
    assert len(warnings.records) == 1


def test_large_ins_without_tokenizer(tmp_path):
    assert "comes without a tokenizer" in refusal(save(tmp_path))


def test_embedding_without_rows_for_ordinary_tokens(tmp_path, tok):
    large, small = save(tmp_path / "large", tok), save(tmp_path / "small", tok, vocab_size=288)
    message = refusal(large, small)
    assert f"has no row in small_cpt ({small}), whose vocab_size is 288" in message
    assert "Token 288 (" in message


def test_embedding_without_rows_for_special_tokens(tmp_path, warnings):
    made = tokenizer(special=["<pad>"])
    large, small = save(tmp_path / "large", made), save(tmp_path / "small", made, vocab_size=290)
    assert check(large, small).vocab_size == 290
    assert "1 special token(s)" in warnings.text


def test_id_without_token():
    a = Vocabulary("a", {"x": 0, "y": 2}, frozenset())
    assert fused_size(a, [trusted("a", a, 9)], None) == 3


# ------------------------------------------------------------------------ devices and memory


@pytest.mark.parametrize(
    ("given", "default", "expected"),
    [
        (None, None, "cuda:0"),
        (None, "cuda:1", "cuda:1"),
        ("cuda", None, "cuda:0"),
        ("cuda:1", None, "cuda:1"),
        ("cpu", "cuda:1", "cpu"),
        ("auto", None, "auto"),
    ],
)
def test_place(given, default, expected):
    spec = SourceSpec("small_cpt", "x", device=given)
    assert memory.place(spec, ["cpu", "cuda:0", "cuda:1"], default) == expected


@pytest.mark.parametrize("given", ["cuda:7", "gpu", "cuda:x"])
def test_device_that_does_not_exist(given):
    spec = SourceSpec("small_cpt", "x", device=given)
    with pytest.raises(TrimixError) as caught:
        memory.place(spec, ["cpu", "cuda:0"])
    assert f"small_cpt (x): there is no device '{given}' here" in str(caught.value)
    assert "devices here: cpu, cuda:0, auto" in str(caught.value)


def test_no_gpu_at_all():
    assert memory.place(SourceSpec("large_ins", "x"), ["cpu"]) == "cpu"
    assert memory.place(SourceSpec("large_ins", "x", device="auto"), ["cpu"]) == "cpu"
    with pytest.raises(TrimixError, match="PyTorch sees no GPU"):
        memory.place(SourceSpec("large_ins", "x", device="cuda"), ["cpu"])


def test_estimates(tmp_path, tok):
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = save(tmp_path, tok)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config)
    count = sum(p.numel() for p in model.parameters())
    linear = sum(p.numel() for n, p in model.named_parameters() if "_proj" in n)
    (found,) = check(folder).estimates
    assert (found.parameters, found.weights, found.precision) == (count, 2 * count, "bfloat16")
    assert found.cache == 2 * 2 * 2 * 8 * 2  # k and v, layers, heads, width of a head, bytes
    (found,) = check(folder, large__dtype="float32").estimates
    assert (found.weights, found.precision) == (4 * count, "float32")
    files = preflight.access.locate(SourceSpec("large_ins", folder))
    for name, size in (("int8", 1.0), ("nf4", 0.5625)):
        spec = SourceSpec("large_ins", folder, quantization=name)
        found = memory.estimate(spec, config, files, "cpu")
        assert found.weights == round(size * linear + 2 * (count - linear))


def test_weights_that_do_not_fit(tmp_path, tok, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda names: dict.fromkeys(names, 1000))
    message = refusal(save(tmp_path, tok))
    assert "The weights need 0.00 GiB on" in message
    assert "quantization=int8 or nf4" in message and "small_device=cuda:1" in message


def test_sources_that_fit_only_apart():
    gib = memory.GIB
    a = memory.Estimate("large_ins", "x", "cuda:0", "bfloat16", 1, 6 * gib, 1)
    b = a._replace(source="small_cpt", weights=3 * gib)
    free = {"cuda:0": 8 * gib, "cuda:1": 8 * gib}
    with pytest.raises(TrimixError, match="large_ins 6.00 GiB, small_cpt 3.00 GiB"):
        memory.check_fit([a, b], free)
    memory.check_fit([a, b._replace(device="cuda:1")], free)
    memory.check_fit([a._replace(device="auto", weights=12 * gib), b], free)
    with pytest.raises(TrimixError, match="14.00 GiB on all GPUs together, where 13.00 GiB"):
        memory.check_fit([a._replace(device="auto", weights=14 * gib), b], free)


def test_attention_that_cannot_be_had(tmp_path, tok):
    message = refusal(save(tmp_path, tok), large__attn_implementation="nonsense")
    assert "attn_implementation=nonsense cannot be had" in message


# ------------------------------------------------------------------------ trimix check


@pytest.fixture
def run_file(tmp_path):
    """Write a run config; return its name."""

    def write(**run):
        path = tmp_path / "run.yaml"
        path.write_text(json.dumps(run))  # JSON is YAML
        return str(path)

    return write


def test_main(tmp_path, tok, run_file, capsys):
    large, small = save(tmp_path / "large", tok), save(tmp_path / "small", tok)
    arguments = {"pretrained": large, "small_cpt": small, "policy": "fixed", "alpha": 0.1}
    good = run_file(model="trimix", model_args=arguments, batch_size=4)
    assert cli.main(["check", "--config", good]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"OK    {good}\n") and "290 token ids are fused" in out
    text = f"pretrained={large},small_cpt={small},policy=fixed"
    assert cli.main(["check", "--model_args", text]) == 0
    assert cli.main(["check", "--config", run_file(model="trimix", model_args=text)]) == 0
    capsys.readouterr()
    assert cli.main(["check", "--config", good, str(tmp_path / "none.yaml")]) == 1
    out = capsys.readouterr().out
    assert out.count("OK ") == 1 and out.count("FAIL") == 1 and "No such file" in out


@pytest.mark.parametrize(
    ("run", "phrase"),
    [
        ({"model": "hf"}, "model is 'hf', not 'trimix'"),
        ({"model": "trimix", "bach_size": 4}, "Did you mean 'batch_size'?"),
        ({"model": "trimix", "log_samples": True}, "lm-eval refuses"),
        ({"model": "trimix", "model_args": [1]}, "give a mapping from names to values"),
        ({"model": "trimix", "model_args": {"pretraned": "x"}}, "No large instruction-tuned"),
        (
            {"model": "trimix", "batch_size": 2, "model_args": {"batch_size": 3}},
            "batch_size is given twice",
        ),
        ({"model": "trimix", "model_args": "alpha=0.1,beta=1,alpha=0.9"}, "'alpha' is given twice"),
        ({"model": "trimix", "model_args": '{"a": 1, "a": 2}'}, "'a' is given twice"),
        ({"model": "trimix", "model_args": '{"a": ' + "[" * 10**5}, "model_args cannot be read"),
    ],
)
def test_main_refuses(run, phrase, run_file, capsys):
    path = run_file(**run)
    assert cli.main(["check", "--config", path]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"FAIL  {path}\n") and phrase in out and "-> " in out


def test_main_with_nothing(capsys):
    assert cli.main(["check"]) == 1
    assert "Nothing to check" in capsys.readouterr().err


def test_tasks(monkeypatch, tmp_path):
    class Index:
        all_tasks = ["belebele_bod_Tibt", "sib"]

        def match_tasks(self, names):
            return [t for t in self.all_tasks if t in names]

    monkeypatch.setattr(harness_check, "_task_manager", lambda *_: Index())
    (tmp_path / "own.yaml").touch()
    own = str(tmp_path / "own.yaml")
    assert harness_check._check_tasks({}) == []
    assert harness_check._check_tasks({"tasks": f"sib,{own}"}) == ["sib", own]
    assert harness_check._check_tasks({"tasks": str(tmp_path)}) == [str(tmp_path)]
    with pytest.raises(TrimixError, match="no task 'belebele_bod'. Did you mean 'belebele_bod_T"):
        harness_check._check_tasks({"tasks": ["sib", "belebele_bod"]})
    with pytest.raises(TrimixError, match="tasks has {} in it"):
        harness_check._check_tasks({"tasks": [{}]})


# ------------------------------------------------------------------------ the Hub

CLIENT = """
import json, logging, sys, time
time.sleep = lambda seconds: None  # between retries
logging.disable(logging.WARNING)
from trimix_lm_eval.loading import preflight
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.loading.settings import Settings, SourceSpec
for case in json.loads(sys.argv[1]):
    tokenizer = case.pop("tokenizer", None)
    asked = Settings({"large_ins": SourceSpec("large_ins", **case)}, tokenizer=tokenizer)
    try:
        report = preflight.check(asked, ["large_ins"])
        print(json.dumps([report.commits["large_ins"], report.vocab_size]), flush=True)
    except TrimixError as error:
        print(json.dumps(str(error)), flush=True)
"""


def ask(home, endpoint, cases, **env):
    """Check each case in a fresh process; return what it printed."""
    ran = client(home, endpoint, "-c", CLIENT, json.dumps(cases), **env)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.fixture(scope="module")
def hub(tmp_path_factory, tok):
    """The endpoint, and the cache that the first client leaves behind with its answers."""
    good, empty = tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("empty")
    save(good, tok)
    home = tmp_path_factory.mktemp("home")
    repositories = {"org/good": good, "org/gated": good, "org/empty": empty}
    cases = {
        "good": {"path": "org/good"},
        "pinned": {"path": "org/good", "revision": COMMIT},
        "gated": {"path": "org/gated"},
        "missing": {"path": "org/missing"},
        "revision": {"path": "org/good", "revision": "v9"},
        "empty": {"path": "org/empty"},
        "down": {"path": "org/down"},
        "no id": {"path": "no id!"},
        "tokenizer": {"path": "org/good", "tokenizer": "org/gated"},
    }
    with Hub(repositories, gated=["org/gated"], down=["org/down"]) as server:
        answers = ask(home, server.endpoint, list(cases.values()))
        yield server.endpoint, home, dict(zip(cases, answers, strict=True))


@pytest.mark.parametrize("case", ["good", "pinned"])
def test_hub_good(hub, case):
    assert hub[2][case] == [COMMIT, 290]


@pytest.mark.parametrize(
    ("case", "what", "hint"),
    [
        ("gated", "large_ins (org/gated) is gated", "conditions at https://huggingface.co/org/ga"),
        ("gated", "has not been granted access", "`hf auth login`"),
        ("missing", "large_ins (org/missing): there is no such repository", "check the spelling"),
        ("missing", "or it is private", "`hf auth login`"),
        ("revision", "org/good has no revision 'v9'", "branch, tag or commit"),
        ("empty", "(org/empty) has no config.json: it is not a transformers model", "gguf_file="),
        ("down", "(org/down): ", "a local folder"),
        ("no id", "'no id!' is neither a local folder nor a Hub id", "owner/name"),
        ("tokenizer", "tokenizer (org/gated) is gated", "`hf auth login`"),
    ],
)
def test_hub_refuses(hub, case, what, hint):
    message, _, advice = hub[2][case].partition("\n  -> ")
    assert what in message and hint in advice


def test_hub_offline(hub):
    endpoint, home, _ = hub
    cases = [{"path": "org/good"}, {"path": "org/other"}]
    cached, missing = ask(home, endpoint, cases, HF_HUB_OFFLINE="1")
    assert "has a config.json but no weights" in cached  # they were never downloaded
    assert "(org/other) is not in the cache, and HF_HUB_OFFLINE forbids" in missing
    assert "into a local folder and give its path" in missing


def test_hub_out_of_reach(hub):
    _, home, _ = hub
    cases = [{"path": "org/good"}, {"path": "org/other"}]
    cached, missing = ask(home, "http://127.0.0.1:9", cases)
    assert cached == [COMMIT, 290]
    assert "(org/other): the Hub cannot be reached" in missing
    assert "check the network" in missing
