"""What goes wrong in real runs: broken weights, no memory, odd texts, odd architectures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from tests.conftest import byte_tokenizer
from tests.support.loaded import load
from tests.support.naive import Naive
from tests.support.running import TRIO, instances, model_args
from trimix_lm_eval import TriMix
from trimix_lm_eval.engine import probe
from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.model_runner import ModelRunner
from trimix_lm_eval.harness.lm import TriMixLM
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.windows import rolling_windows

ALPHA, BETA = 0.3, 0.8
PAIRS = [
    ("The cat sat on the mat and", " the hen"),
    ("The cat sat on the mat and", " x"),
    ("q", "zx"),
    ("བོད་སྐད་ནི", "་ཡིན"),
    ("There are rivers", " in the barn, over there and further on"),
    ("", "Begins here"),
]
TEXTS = ["A text that is longer than one window of the models. " * 3, "x", "སྐད་ཡིག"]


def trio(folders, **more):
    point = {"policy": "fixed", "alpha": ALPHA, "beta": BETA}
    roles = {role: folders[role] for role in TRIO}
    return TriMix.from_pretrained(**roles, device="cpu", **{**point, **more})


def expected(model, naive, pair, point=(ALPHA, BETA)):
    """The naive score of a pair that fits into the context."""
    prompt, target = model.codec.pair(*pair)
    ids = [*prompt.ids, *target]
    return -float(naive.nll(naive.fused(ids[:-1], *point), ids, len(prompt.ids)).sum())


def expected_rolling(model, naive, text, point=(ALPHA, BETA)):
    total = 0.0
    windows = rolling_windows(model.codec.encode(text), model.codec.prefix_id, model.max_length)
    for context, target in windows:
        ids = [*context, *target]
        total -= float(naive.nll(naive.fused(ids[:-1], *point), ids, len(context)).sum())
    return total


@pytest.fixture(scope="module")
def folders(pico):
    return pico("llama")


@pytest.fixture(scope="module")
def naive(folders):
    return Naive({role: folders[role] for role in TRIO}, 265)


@pytest.fixture(scope="module")
def model(folders):
    return trio(folders, batch_size=4)


# -------------------------------------------------- numbers that break while a model runs


def break_weights(loaded: TriMix, name: str, value: float, where: str, index) -> None:
    """Weights that break in memory: files that hold such are refused before (loading)."""
    source = next(s for s in loaded.fuser.ensemble.sources if s.name == name)
    with torch.no_grad():
        source.model.get_parameter(where)[index] = value


BREAKS = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def breakable(folders):
    """Models of this test's own, whose weights are put right again after each case."""
    return load(folders)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("broken", TRIO)
@pytest.mark.parametrize("policy", ["fixed", "ppl", "ent"])
def test_broken_numbers_are_an_error_that_names_the_source(breakable, broken, value, policy):
    point = {"alpha": ALPHA, "beta": BETA} if policy == "fixed" else {}
    loaded = breakable.weighted(policy, **point)
    source = next(s for s in loaded.fuser.ensemble.sources if s.name == broken)
    sound = source.model.get_parameter(BREAKS)[3, 3].item()
    break_weights(loaded, broken, value, BREAKS, (3, 3))
    try:
        assert_all_name(loaded, broken)
    finally:
        break_weights(loaded, broken, sound, BREAKS, (3, 3))


def assert_all_name(loaded: TriMix, broken: str) -> None:
    """Whatever is asked for, the error names the source."""
    for ask in (
        lambda: loaded.loglikelihood([PAIRS[0]]),
        lambda: loaded.loglikelihood_rolling(TEXTS[:1]),
        lambda: loaded.generate(["The cat"], max_new_tokens=3),
    ):
        with pytest.raises(TrimixError, match=rf"{broken}\b.*(NaN|infinite)"):
            ask()


def test_broken_embedding_of_one_token_names_source_and_request(folders):
    """Only the request that holds the token fails, and the error says which one it is."""
    lm = TriMixLM(**model_args(folders, policy="fixed", batch_size=2))
    token = byte_tokenizer().encode("Q")[0]
    break_weights(lm.model, "small_cpt", float("nan"), "model.embed_tokens.weight", token)
    fine = instances("loglikelihood", [("abc", " d"), ("some", " text")], task="fine")
    assert all(x < 0 for x, _ in lm.loglikelihood(fine, disable_tqdm=True))
    bad = instances("loglikelihood", [("abc", " d"), ("the Q is", " broken")], task="bad_task")
    with pytest.raises(TrimixError, match="small_cpt") as caught:
        lm.loglikelihood(bad, disable_tqdm=True)
    assert "the Q is" in str(caught.value) or "bad_task" in str(caught.value)


# ---------------------------------------------------------------- memory


@pytest.fixture
def small_memory(monkeypatch):
    """A device that holds so many rows and no more; counts how often it ran out."""
    failures: list[int] = []
    extend = InputBatch.extend

    def limit(most: int) -> list[int]:
        def fake(self, ids, valid, wanted):
            if ids.shape[0] > most:
                failures.append(ids.shape[0])
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return extend(self, ids, valid, wanted)

        monkeypatch.setattr(InputBatch, "extend", fake)
        return failures

    return limit


@pytest.mark.parametrize("policy", ["fixed", "ppl"])
def test_out_of_memory_halves_the_batch_and_changes_nothing(folders, small_memory, policy):
    point = {"alpha": ALPHA, "beta": BETA} if policy == "fixed" else {}
    roles = {role: folders[role] for role in TRIO}
    loaded = TriMix.from_pretrained(**roles, device="cpu", policy=policy, batch_size=8, **point)
    prompts = [context or "x" for context, _ in PAIRS]

    def run():
        return (
            [score.log_likelihood for score in loaded.loglikelihood(PAIRS)],
            [score.log_likelihood for score in loaded.loglikelihood_rolling(TEXTS)],
            loaded.generate(prompts, max_new_tokens=8),
            loaded.generate(prompts, max_new_tokens=8, temperature=1.0, seed=3),
        )

    want = run()
    failures = small_memory(2)
    got = run()
    assert failures and max(failures) <= 8
    for x, y in zip(got[:2], want[:2], strict=True):
        assert x == pytest.approx(y, abs=1e-5, rel=1e-6)
    assert got[2:] == want[2:]


@pytest.mark.parametrize("policy", ["ppl", "gate"])
def test_with_a_batch_of_one_chunks_shrink_and_nothing_changes(folders, monkeypatch, policy):
    """A device that has no room for more than 40 tokens at a time."""
    roles = {role: folders[role] for role in TRIO}
    loaded = TriMix.from_pretrained(**roles, device="cpu", policy=policy, speculative=2)
    pairs = [(text * 3, " barn") for text, _ in PAIRS if text]

    def run():
        scores = [*loaded.loglikelihood(pairs), *loaded.loglikelihood_rolling(TEXTS)]
        texts = loaded.generate([text for text, _ in pairs], max_new_tokens=4)
        return [(s.log_likelihood, s.choice.weights) for s in scores], texts

    want = run()
    failures, extend = [], InputBatch.extend

    def limited(self, ids, valid, wanted):
        if ids.numel() > 40:
            failures.append(ids.numel())
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")
        return extend(self, ids, valid, wanted)

    monkeypatch.setattr(InputBatch, "extend", limited)
    scores, texts = run()
    assert failures and loaded.fuser.ensemble.chunk_tokens == 32
    assert texts == want[1]
    for (got, weights), (value, chosen) in zip(scores, want[0], strict=True):
        assert got == pytest.approx(value, abs=1e-5, rel=1e-6)
        assert weights == pytest.approx(chosen, abs=1e-4)


def test_out_of_memory_with_one_row_is_an_error_that_helps(model, small_memory):
    small_memory(0)
    for ask in (
        lambda: model.loglikelihood(PAIRS),
        lambda: model.loglikelihood_rolling(TEXTS),
        lambda: model.generate(["x"], max_new_tokens=3),
    ):
        with pytest.raises(TrimixError, match="(?s)batch of one.*max_length"):
            ask()


def no_room(*_):
    """What PyTorch raises on a CPU: no OutOfMemoryError."""
    torch.empty(2**45)


def test_a_head_that_finds_no_memory_on_a_cpu_is_no_traceback(model, monkeypatch):
    monkeypatch.setattr(ModelRunner, "compute_logits", no_room)
    for ask in (
        lambda: model.loglikelihood(PAIRS),
        lambda: model.loglikelihood_rolling(TEXTS),
        lambda: model.generate(["x"], max_new_tokens=3),
    ):
        with pytest.raises(TrimixError, match="(?s)batch of one.*DefaultCPUAllocator.*max_length"):
            ask()


def test_no_memory_for_the_trial_is_not_taken_for_a_model_that_cannot_do_it(model, monkeypatch):
    source = model.fuser.ensemble.sources[0]
    monkeypatch.setattr(ModelRunner, "forward", no_room)
    with pytest.raises(TrimixError, match="no memory to run a short text.*DefaultCPUAllocator"):
        probe.load_runner("large_ins", source.model, source.vocab_size, False)


def test_a_model_whose_code_fails_at_once_is_told_of(model, monkeypatch):
    source = model.fuser.ensemble.sources[0]

    def forward(*args, **kwargs):
        return ().last_hidden_state

    monkeypatch.setattr(source.model, "forward", forward)
    with pytest.raises(TrimixError, match="(?s)short text: AttributeError.*config.json"):
        probe.load_runner("large_ins", source.model, source.vocab_size, False)


# ---------------------------------------------------------------- sources that fail


@pytest.mark.parametrize("error", [RuntimeError, IndexError, ValueError, TypeError, AssertionError])
def test_a_source_that_fails_is_named(folders, error, monkeypatch):
    loaded = trio(folders)

    def fail(*args, **kwargs):
        raise error("the third kernel did not like it")

    monkeypatch.setattr(loaded.fuser.ensemble.sources[1].model.model, "forward", fail)
    with pytest.raises(TrimixError, match="(?s)small_cpt.*the third kernel"):
        loaded.loglikelihood(PAIRS)


# ---------------------------------------------------------------- odd texts


def test_empty_continuation(model):
    empty, full = model.loglikelihood([("The cat", ""), ("The cat", " sat")])
    assert empty.log_likelihood == 0.0 and empty.is_greedy
    assert full.log_likelihood < 0
    assert model.loglikelihood([("", "")])[0].log_likelihood == 0.0


def test_continuation_longer_than_the_context_length(model, naive):
    """Every token once, each after as many tokens as fit: like a text of its own."""
    continuation = " over the barn and the rivers there" * 6
    assert len(model.codec.encode(continuation)) > model.max_length
    context = "The cat"
    for pair in ((context, continuation), ("", continuation)):
        (score,) = model.loglikelihood([pair])
        prompt, target = model.codec.pair(*pair)
        ids = [*prompt.ids, *target]
        # Windows of its own choice: from the end, each full, each after all that still fits.
        windows, end = [], len(ids)
        while end > len(prompt.ids):
            begin = max(len(prompt.ids), end - model.max_length)
            windows.append((begin, end))
            end = begin
        want = 0.0
        for begin, end in windows:
            fed = ids[max(0, end - 1 - model.max_length) : end]
            logits = naive.fused(fed[:-1], ALPHA, BETA)
            want -= float(naive.nll(logits, fed, len(fed) - (end - begin)).sum())
        # How the windows lie is a matter of taste; that each token is judged once is not.
        assert abs(score.log_likelihood - want) / len(target) < 1.0
        assert score.log_likelihood < 0
    assert model.truncated >= 2


def test_long_continuation_under_a_task_point_keeps_the_point(folders):
    """All options of a task are scored with the task's one point, the long one too."""
    lm = TriMixLM(**model_args(folders, policy="ppl_task", batch_size=2))
    long = " over the barn and the rivers there" * 6
    asked = instances("loglikelihood", [("The cat", long), ("The hen", " sat")])
    got = lm.loglikelihood(asked, disable_tqdm=True)
    point = lm.task_points["t"].weights
    fixed = trio(folders, alpha=point.alpha, beta=point.beta)
    want = [s.log_likelihood for s in fixed.loglikelihood([r.args for r in asked])]
    assert [x for x, _ in got] == pytest.approx(want, abs=1e-5, rel=1e-6)


@pytest.mark.parametrize(
    ("context", "continuation"),
    [
        ("wx th", "e end"),
        ("wx t", "h"),
        ("wx t", "he"),
        ("i", "n"),
        ("t", "he"),
        ("th", "e"),
        (" ", "a"),
    ],
)
def test_a_token_that_spans_context_and_continuation(model, naive, context, continuation):
    """Scored, finite, and never for free: no text is certain."""
    (score,) = model.loglikelihood([(context, continuation)])
    assert -200 < score.log_likelihood < -1e-3
    whole = model.codec.encode(context + continuation)
    tokens = len(model.codec.encode(context))
    if len(whole) <= tokens or whole[:tokens] != model.codec.encode(context):
        # The token on the border belongs to the continuation.
        shared = 0
        while shared < tokens and whole[shared] == model.codec.encode(context)[shared]:
            shared += 1
        if len(whole) <= tokens:
            ids = whole if shared else [256, *whole]
            start = shared or 1
            want = -float(naive.nll(naive.fused(ids, ALPHA, BETA), ids, start).sum())
            assert score.log_likelihood == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("context", [" ", "\n", "  \n\t ", "\u3000"])
def test_white_space_as_context(model, naive, context):
    (score,) = model.loglikelihood([(context, "word")])
    ids = [256, *model.codec.encode(context + "word")]
    want = -float(naive.nll(naive.fused(ids, ALPHA, BETA), ids, 1).sum())
    assert score.log_likelihood == pytest.approx(want, abs=1e-5)
    assert isinstance(model.generate([context], max_new_tokens=3)[0], str)


def test_empty_lists_and_empty_texts(model):
    assert model.loglikelihood([]) == []
    assert model.loglikelihood_rolling([]) == []
    assert model.generate([]) == []
    (score,) = model.loglikelihood_rolling([""])
    assert score.log_likelihood == 0.0


@pytest.mark.parametrize("text", ["\x00\x01", "a" * 5000, "\ud7ff\ue000", "🜁" * 90, "<s></s><pad>"])
def test_strange_texts_are_scored(model, text):
    (score,) = model.loglikelihood_rolling([text])
    assert -1e6 < score.log_likelihood < 0
    (score,) = model.loglikelihood([(text, " x")])
    assert -1e3 < score.log_likelihood < 0
    assert isinstance(model.generate([text], max_new_tokens=2)[0], str)


def test_the_tokenizer_does_not_warn_of_a_long_text(model, monkeypatch):
    """transformers says once per process that it "will result in indexing errors"."""
    told = {}
    monkeypatch.setattr(model.tokenizer, "model_max_length", 64)
    monkeypatch.setattr(model.tokenizer, "deprecation_warnings", told)
    model.loglikelihood_rolling(["a b " * 100])
    assert not told
    model.tokenizer.encode("a b " * 100)
    assert told, "else there would be nothing to see here"


def test_truncation_is_told_once_with_its_count(folders, caplog):
    from trimix_lm_eval.utils import errors

    errors._warned.clear()
    loaded = trio(folders, batch_size=2)
    long = "words " * 60
    loaded.loglikelihood([(long, " a"), ("x", " b"), (long, " c")])
    loaded.generate([long, "x"], max_new_tokens=3)
    loaded.generate([long], max_new_tokens=3)
    (told,) = [r.getMessage() for r in caplog.records if "context length" in r.getMessage()]
    assert told.startswith("2 request(s)")
    assert loaded.truncated == 4


# ---------------------------------------------------------------- architectures

COMMON = {"vocab_size": 265, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
DECODER = {
    **COMMON,
    "max_position_embeddings": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.35,
}
GROUPED = {**DECODER, "num_key_value_heads": 2}
LEARNED = {**COMMON, "pad_token_id": 1, "max_position_embeddings": 96, "init_std": 0.35}

#: (config class, its fields, whether the model can be run in a batch with a cache)
ARCHITECTURES = {
    "gpt2": (
        "GPT2Config",
        {**COMMON, "n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 4},
        True,
    ),
    "opt": (
        "OPTConfig",
        {
            **LEARNED,
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        True,
    ),
    "gpt_neox": ("GPTNeoXConfig", DECODER, True),
    "phi": ("PhiConfig", DECODER, True),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}, True),
    "mistral_window": ("MistralConfig", {**GROUPED, "sliding_window": 7}, True),
    "gemma2_softcap": (
        "Gemma2Config",
        {**GROUPED, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8},
        True,
    ),
    # The cap changes these logits by a few percent only: no excuse.
    "gemma2_faint": (
        "Gemma2Config",
        {
            **GROUPED,
            "head_dim": 8,
            "sliding_window": 5,
            "query_pre_attn_scalar": 8,
            "initializer_range": 0.1,
        },
        True,
    ),
    "cohere_scale": ("CohereConfig", {**GROUPED, "logit_scale": 0.25}, True),
    # So close to 1 that a coarse comparison would overlook it.
    "cohere_near": ("CohereConfig", {**GROUPED, "logit_scale": 0.97}, True),
    "granite_scale": (
        "GraniteConfig",
        {
            **GROUPED,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 2.0,
        },
        True,
    ),
    "bloom_alibi": (
        "BloomConfig",
        {**COMMON, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.35},
        False,
    ),
    # Its bias counts slots of the cache, not positions.
    "mpt_alibi": (
        "MptConfig",
        {**COMMON, "d_model": 32, "n_layers": 2, "n_heads": 4, "initializer_range": 0.35},
        False,
    ),
    "falcon_alibi": (
        "FalconConfig",
        {
            **COMMON,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "alibi": True,
            "multi_query": False,
            "initializer_range": 0.35,
        },
        False,
    ),
    "mamba": (
        "MambaConfig",
        {
            **COMMON,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 8,
            "initializer_range": 0.35,
        },
        False,
    ),
    # Local attention that counts cache slots, not positions, and knows no mask for it.
    "gpt_neo_local": (
        "GPTNeoConfig",
        {
            **COMMON,
            "max_position_embeddings": 96,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "initializer_range": 0.35,
        },
        False,
    ),
    # The same, with a window longer than a short trial text.
    "gpt_neo_wide": (
        "GPTNeoConfig",
        {
            **COMMON,
            "max_position_embeddings": 96,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 40,
            "initializer_range": 0.35,
        },
        False,
    ),
}
UNLIMITED = {"bloom_alibi", "mpt_alibi", "falcon_alibi", "mamba"}


def build(folder: Path, kind: str) -> dict[str, str]:
    name, fields, _ = ARCHITECTURES[kind]
    made = {}
    for seed, role in enumerate(TRIO, start=31):
        torch.manual_seed(seed)
        weights = AutoModelForCausalLM.from_config(getattr(transformers, name)(**fields))
        weights.generation_config.eos_token_id = 257
        weights.save_pretrained(folder / role)
        byte_tokenizer().save_pretrained(folder / role)
        made[role] = str(folder / role)
    return made


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_other_architectures_equal_the_reference(tmp_path, kind, record_property):
    folders = build(tmp_path, kind)
    more = {"max_length": 96} if kind in UNLIMITED else {}
    loaded = trio(folders, batch_size=3, **more)
    assert loaded.max_length == 96
    plain = [source.plain for source in loaded.fuser.ensemble.sources]
    record_property("plain", str(plain))
    print(f"{kind}: {'row by row' if all(plain) else 'batched with a cache'} {plain}")
    # Slow and exact may replace batched; batched may not replace exact.
    assert len(set(plain)) == 1
    if ARCHITECTURES[kind][2]:
        assert not any(plain)
    # Else the logits of a whole row would be there at once.
    assert all(source.splits for source in loaded.fuser.ensemble.sources)

    reference = Naive(folders, loaded.report.vocab_size)
    pairs = [*PAIRS, ("word " * 9, "rain " * 9)]
    for pair, score in zip(pairs, loaded.loglikelihood(pairs), strict=True):
        want = expected(loaded, reference, pair)
        assert score.log_likelihood == pytest.approx(want, abs=1e-4), pair
    for text, score in zip(TEXTS, loaded.loglikelihood_rolling(TEXTS), strict=True):
        want = expected_rolling(loaded, reference, text)
        assert score.log_likelihood == pytest.approx(want, rel=1e-5, abs=1e-4), text
    prompts = ["The cat sat on the mat and slept there", "zx", "སྐད"]
    for prompt, text in zip(prompts, loaded.generate(prompts, max_new_tokens=20), strict=True):
        ids = reference.greedy(loaded.codec.encode(prompt), 20, ALPHA, BETA)
        assert text == loaded.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_learned_positions_up_to_the_very_last(tmp_path, kind):
    """Rows that fill the table of positions exactly, beside short ones in the same batch."""
    folders = build(tmp_path, kind)
    loaded = trio(folders, batch_size=3)
    reference = Naive(folders, loaded.report.vocab_size)
    pairs = [("x" * 90, "z" * 7), ("x" * 96, "z"), ("z", "x" * 96), ("y", "x"), ("x" * 200, "zz")]
    got = loaded.loglikelihood(pairs)
    for (context, continuation), score in zip(pairs, got, strict=True):
        ids = loaded.codec.encode(context + continuation)
        fed = ids[-97:]
        logits = reference.fused(fed[:-1], ALPHA, BETA)
        want = -float(reference.nll(logits, fed, len(fed) - len(continuation)).sum())
        assert score.log_likelihood == pytest.approx(want, abs=1e-4)
    texts = loaded.generate(["x" * 96, "x" * 86, "y"], max_new_tokens=10)
    for prompt, text in zip(["x" * 86, "x" * 86, "y"], texts, strict=True):
        ids = reference.greedy(loaded.codec.encode(prompt), 10, ALPHA, BETA)
        assert text == loaded.tokenizer.decode(ids, skip_special_tokens=True)


def test_families_may_be_mixed(tmp_path, pico):
    """One tokenizer is all that the sources must share: a plain source beside batched ones."""
    llama = pico("llama", padded=False)
    bloom = build(tmp_path, "bloom_alibi")
    mixed = {**{role: llama[role] for role in TRIO}, "small_base": bloom["small_base"]}
    loaded = trio(mixed, batch_size=3, max_length=96)
    assert [s.plain for s in loaded.fuser.ensemble.sources] == [False, False, True]
    reference = Naive(mixed, loaded.report.vocab_size)
    for pair, score in zip(PAIRS, loaded.loglikelihood(PAIRS), strict=True):
        assert score.log_likelihood == pytest.approx(expected(loaded, reference, pair), abs=1e-4)
    for prompt in ("The cat", "zx"):
        (text,) = loaded.generate([prompt], max_new_tokens=10)
        ids = reference.greedy(loaded.codec.encode(prompt), 10, ALPHA, BETA)
        assert text == loaded.tokenizer.decode(ids, skip_special_tokens=True)


def test_long_rope_of_a_row_does_not_depend_on_its_batch(tmp_path):
    """Phi-3's long RoPE switches by the longest row of a forward; short rows must not notice."""
    fields = {
        **GROUPED,
        "max_position_embeddings": 160,
        "original_max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
        },
    }
    folders = {}
    for seed, role in enumerate(TRIO, start=31):
        torch.manual_seed(seed)
        weights = AutoModelForCausalLM.from_config(transformers.Phi3Config(**fields))
        weights.save_pretrained(tmp_path / role)
        byte_tokenizer().save_pretrained(tmp_path / role)
        folders[role] = str(tmp_path / role)
    loaded = trio(folders, batch_size=4)
    pairs = [("short one", " here"), ("words of a long row " * 5, " end"), ("tiny", " x")]
    together = [score.log_likelihood for score in loaded.loglikelihood(pairs)]
    reference = Naive(folders, loaded.report.vocab_size)
    # Up to the original context the embedding is one and the same: longer rows are cut to it.
    assert loaded.max_length == 64
    prompt, target = loaded.codec.pair(*pairs[1])
    ids = [*prompt.ids, *target][-65:]
    long = -reference.nll(reference.fused(ids[:-1], ALPHA, BETA), ids, 65 - len(target)).sum()
    want = [expected(loaded, reference, pair) for pair in pairs]
    want[1] = float(long)
    assert together == pytest.approx(want, abs=1e-4)
    # Beyond it, every text has the factors for long ones, however short it is.
    for folder in folders.values():
        config = transformers.Phi3Config.from_pretrained(folder)
        config.rope_parameters["short_factor"] = config.rope_parameters["long_factor"]
        config.save_pretrained(folder + "-long")
        shutil.copy(f"{folder}/model.safetensors", folder + "-long")
    loaded = trio(folders, batch_size=4, max_length=160)
    reference = Naive({k: v + "-long" for k, v in folders.items()}, loaded.report.vocab_size)
    want = [expected(loaded, reference, pair) for pair in pairs]
    together = [score.log_likelihood for score in loaded.loglikelihood(pairs)]
    assert together == pytest.approx(want, abs=1e-4)
    prompt = pairs[1][0]
    assert len(loaded.codec.encode(prompt)) > 64
    ids = reference.greedy(loaded.codec.encode(prompt), 6, ALPHA, BETA)
    (text,) = loaded.generate([prompt], max_new_tokens=6)
    assert text == loaded.tokenizer.decode(ids, skip_special_tokens=True)
