"""Pico models built on disk: seeded, random, tiny. Nothing is downloaded."""

from __future__ import annotations

import functools
import gc
import json
from pathlib import Path

import lm_eval.utils
import pytest
import torch
import transformers
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils import collect_env
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from tests.support import fuzzing, lm_eval_tasks
from tests.support.browser import PROGRAM, Browser
from tests.support.loaded import Trio, load
from trimix_lm_eval.tasklib import places

torch.set_num_threads(1)
# lm-eval writes into every results file what is installed, which takes pip most of a second.
collect_env.get_pretty_env_info = functools.cache(collect_env.get_pretty_env_info)
# lm-eval compiles a task's template anew for every document.
lm_eval.utils.env.from_string = functools.lru_cache(1000)(lm_eval.utils.env.from_string)
# A machine that is busy with something else is no fault of an example.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

#: Rows of the embeddings: more than the tokenizer has, as in Qwen2.5. They differ by source.
PADDED = {"large_ins": 320, "small_cpt": 304, "small_base": 304, "large_base": 320}
ROLES = tuple(PADDED)
SHAPE = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "initializer_range": 0.35,
}


def pytest_addoption(parser):
    """How long tests/fuzz goes on."""
    parser.addoption(
        "--fuzz-cases",
        type=int,
        metavar="N",
        help="about so many cases in tests/fuzz, drawn anew (default: 1000, always the same)",
    )


def pytest_configure(config):
    """Read lm-eval's own tasks once for all processes of the run, see `lm_eval_tasks`."""
    fuzzing.CASES = config.getoption("--fuzz-cases")
    if hasattr(config, "cache"):
        file = lm_eval_tasks.read(config.cache.mkdir("lm-eval-tasks"))
        lm_eval_tasks.use(lm_eval_tasks.load(file))


def pytest_collection_modifyitems(items):
    """Begin with what takes long, so that no process is left alone with it at the end."""
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")
    files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in files)


def pytest_runtest_setup(item):
    """Skip all tests of a browser in one place, so that one line of the summary counts them."""
    if PROGRAM is None and "chromium" in getattr(item, "fixturenames", ()):
        pytest.skip("no chromium or google-chrome on the PATH: pages are not tried out in one")


@pytest.fixture(scope="module", autouse=True)
def little_to_collect():
    """Leave out of every `gc.collect` what was imported so far: a million objects, half a second.

    The first module finds all that was imported for the collection; some later ones import more.
    """
    if len(gc.get_objects()) > 100_000:
        gc.collect()
        gc.freeze()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, some merges, and BOS, EOS, PAD after them: 259 to 290 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)}
    merges = []
    for special in ("<s>", "</s>", "<pad>"):
        vocab[special] = len(vocab)
    for a, b in (("Ġ", "a"), ("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("e", "r")):
        vocab[a + b] = len(vocab)
        merges.append((a, b))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


#: Not in the oldest transformers that is supported.
HAS_GEMMA4 = hasattr(transformers, "Gemma4TextConfig")
FAMILIES = (
    *("llama", "qwen2", "gemma3", "mixtral"),
    *(("gemma4",) if HAS_GEMMA4 else ()),
    *("deepseek_v3", "gpt_oss", "llama4"),
    *(("qwen3_5",) if hasattr(transformers, "Qwen3_5TextConfig") else ()),
)
#: Those whose decoding rounds are captured in fp32: experts wait for the host there.
CAPTURED = tuple(family for family in FAMILIES if family not in ("mixtral", "gpt_oss"))


def config_of(family: str, role: str):
    """A tiny config; the large models are wider than the small ones."""
    large = role.startswith("large")
    shape = {
        **SHAPE,
        "vocab_size": PADDED[role],
        "hidden_size": 48 if large else 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3 if large else 2,
    }
    if family == "llama":
        return LlamaConfig(**shape)
    if family == "qwen2":
        shape.pop("head_dim")
        return Qwen2Config(**shape, tie_word_embeddings=True)
    if family == "gemma3":
        # Three layers, one of them sliding with a window far shorter than the texts.
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        return Gemma3TextConfig(
            **shape,
            tie_word_embeddings=False,
            sliding_window=5,
            layer_types=kinds[: shape["num_hidden_layers"]],
            query_pre_attn_scalar=8,
        )
    if family == "gemma4":
        # Heads of two sizes, and last layers that use the keys and values of those before.
        count = 4 if large else 2
        kinds = ["sliding_attention", "full_attention"] * (count // 2)
        more = {"global_head_dim": 16, "hidden_size_per_layer_input": 8, "sliding_window": 5}
        more["num_kv_shared_layers"] = 2 if large else 0
        more["vocab_size_per_layer_input"] = shape["vocab_size"]
        shape["num_hidden_layers"] = count
        return transformers.Gemma4TextConfig(**shape, **more, layer_types=kinds)
    if family == "deepseek_v3":
        # The cache holds what keys and values are computed from; these differ in size.
        more = {"kv_lora_rank": 16, "q_lora_rank": 16, "v_head_dim": 12, "qk_nope_head_dim": 8}
        more |= {"qk_rope_head_dim": 8, "first_k_dense_replace": 3, "num_key_value_heads": 4}
        return transformers.DeepseekV3Config(**shape | more)
    if family == "gpt_oss":
        more = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5}
        return transformers.GptOssConfig(**shape, **more, rope_parameters={"rope_theta": 10000.0})
    if family == "llama4":
        # The last layer has no RoPE, but a temperature that changes every 8 positions.
        count = shape["num_hidden_layers"]
        more = {"no_rope_layers": [1] * (count - 1) + [0], "floor_scale": 8, "moe_layers": [1]}
        more |= {"num_local_experts": 4, "intermediate_size_mlp": 64, "attention_chunk_size": 16}
        return transformers.Llama4TextConfig(**shape, **more)
    if family == "qwen3_5":
        # Gated delta rules, attention among them.
        kinds = ["linear_attention", "full_attention", "linear_attention"]
        return transformers.Qwen3_5TextConfig(
            **shape,
            layer_types=kinds[: shape["num_hidden_layers"]],
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        )
    if family == "mixtral":
        return MixtralConfig(**shape, num_local_experts=4, num_experts_per_tok=2)
    raise ValueError(family)


def build(folder: Path, family: str, role: str, seed: int, padded: bool = True) -> Path:
    """Write one random model with its tokenizer to disk."""
    config = config_of(family, role)
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    if not padded:
        # As AutoTokenizer reads it back: some versions add a token of the family's own.
        config.vocab_size = len(AutoTokenizer.from_pretrained(folder))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = 257
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def no_data_used():
    """Results tell which data their process has read: here, only what these tests read."""
    places.USED.clear()


@pytest.fixture(scope="session")
def pico(tmp_path_factory):
    """``pico(family)`` gives {role: folder} of four random models.

    Their embeddings have padding rows with random weights, more in the large models; with
    ``padded=False`` they have none, which is what it takes to compare with ``hf``.
    """
    made: dict[tuple[str, bool], dict[str, str]] = {}

    def get(family: str = "llama", padded: bool = True) -> dict[str, str]:
        if (family, padded) not in made:
            root = tmp_path_factory.mktemp(f"pico-{family}")
            made[family, padded] = {
                role: str(build(root / role, family, role, seed, padded))
                for seed, role in enumerate(ROLES, start=11)
            }
        return made[family, padded]

    return get


@pytest.fixture(scope="session")
def trio(pico):
    """``trio(family)`` gives the four models of `pico` loaded, as a `loaded.Trio`."""
    made: dict[str, Trio] = {}

    def get(family: str = "llama") -> Trio:
        if family not in made:
            made[family] = load(pico(family))
        return made[family]

    return get


@pytest.fixture(scope="session")
def chromium():
    """The program of a real browser."""
    return PROGRAM


@pytest.fixture(scope="module")
def browser(chromium):
    """A real browser with one page."""
    with Browser() as started:
        yield started


def write_task(folder: Path, name: str, rows: list[dict], **fields) -> Path:
    """Write a task over JSONL rows; returns its folder."""
    import yaml

    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        **fields,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return folder


@pytest.fixture
def task_yaml(tmp_path):
    """`write_task` in the folder of the test: ``task_yaml(name, rows, **fields)``."""
    return functools.partial(write_task, tmp_path)
