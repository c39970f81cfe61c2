"""A BOS at the beginning is never scored, however it came there; all other numbers are `hf`'s."""

from __future__ import annotations

import dataclasses

import pytest
from lm_eval.models.huggingface import HFLM
from tokenizers import processors

from tests.conftest import byte_tokenizer
from tests.support.running import instances
from trimix_lm_eval import TriMix
from trimix_lm_eval.analysis.explain.run import explain_given, explain_text
from trimix_lm_eval.training.cpt.measure import Windows, measure

BOS, EOS = 256, 257
LONG = "It rained on the hen, then in the barn, and over the other rivers there. " * 3
TEXTS = ["The cat sat", "x", "སྐད་ཡིག", LONG]


def tokenizer(manner):
    """A tokenizer that puts BOS first by itself, when it is asked to, or not, or that has none."""
    made = byte_tokenizer()
    if manner == "adds":
        first = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", BOS)])
        made.backend_tokenizer.post_processor = first
    elif manner == "asked":
        made.add_bos_token = True
    elif manner == "same":
        made.bos_token = "</s>"
    elif manner == "none":
        made.bos_token = None
    return made


def model(trio, manner, policy="fixed", **asked):
    options = {"alpha": 0.3, "beta": 0.6} if policy == "fixed" else {}
    plain = trio.weighted(policy, batch_size=2, **options)
    if manner == "asked":
        asked["add_bos_token"] = True
    settings = dataclasses.replace(plain.settings, **asked)
    return TriMix(settings, tokenizer(manner), plain.fuser, plain.report)


def expected(trio, ids, first):
    """Each token once, after ``first`` and all that fits before it; a window is 96 tokens."""
    total, row = 0.0, [first, *ids]
    for start in range(0, len(ids), 96):
        end = min(start + 96, len(ids))
        seen = row[:end] if start == 0 else row[end - 96 : end]
        whole = [*seen, row[end]]
        nll = trio.naive.nll(trio.naive.fused(seen, 0.3, 0.6), whole, len(whole) - (end - start))
        total -= float(nll.sum())
    return total


#: By manner, the token before a text, and texts that begin with it, once and twice.
MANNERS = {
    "adds": (BOS, ["<s>The cat", "<s><s>x"]),
    "asked": (BOS, ["<s>The cat", "<s><s>x"]),
    "plain": (BOS, ["<s>The cat", "<s><s>x"]),
    "same": (EOS, ["</s>The cat", "</s></s>x"]),
    "none": (EOS, ["</s>The cat"]),
}


@pytest.mark.parametrize("manner", MANNERS)
def test_whole_texts_and_continuations_of_nothing(trio, manner):
    trio = trio("llama")
    made, (first, begun) = model(trio, manner), MANNERS[manner]
    assert made.codec.puts_bos == (manner in ("adds", "asked"))
    assert ("leading_bos" in made.describe()) == made.codec.puts_bos
    texts = [*TEXTS, *begun]
    ids = [made.tokenizer.encode(t, add_special_tokens=False) for t in texts]
    bare = [[i for i in one if i != first] for one in ids]
    want = [pytest.approx(expected(trio, one, first), abs=1e-4) for one in bare]
    assert [score.log_likelihood for score in made.loglikelihood_rolling(texts)] == want
    scores = made.loglikelihood([("", text) for text in texts])
    assert [score.log_likelihood for score in scores] == want
    # What is in the middle of a text is text.
    (middle,) = made.loglikelihood_rolling(["x</s>y"])
    ids = made.tokenizer.encode("x</s>y", add_special_tokens=False)
    assert EOS in ids and middle.log_likelihood == pytest.approx(expected(trio, ids, first))


@pytest.mark.parametrize("policy", ["ppl", "gate", "ent"])
def test_every_policy_reads_the_same_text(trio, policy):
    """The policies that choose by the tokens before see no BOS after BOS either."""
    plain, adds = (model(trio("llama"), manner, policy) for manner in ("plain", "adds"))
    want = [pytest.approx(one.log_likelihood) for one in plain.loglikelihood_rolling(TEXTS)]
    assert [one.log_likelihood for one in adds.loglikelihood_rolling(TEXTS)] == want


def test_a_prefix_of_ones_own(trio):
    """It stands before every text, in place of the BOS that tokenizer or text put there."""
    trio = trio("llama")
    made = model(trio, "adds", prefix_token_id=65)
    (ids,) = (made.tokenizer.encode("The cat", add_special_tokens=False),)
    want = pytest.approx(expected(trio, ids, 65), abs=1e-4)
    texts = ["The cat", "<s>The cat"]
    assert [score.log_likelihood for score in made.loglikelihood_rolling(texts)] == [want] * 2
    scores = made.loglikelihood([("", text) for text in texts])
    assert [score.log_likelihood for score in scores] == [want] * 2
    assert made.codec.encode("<s>The cat") == [BOS, *ids], "no second BOS in a prompt either"


def test_pairs_whose_context_is_bos(trio):
    made = model(trio("llama"), "adds")
    want = made.codec.pair("", "The")
    assert want[0].ids == (BOS,)
    for pair in (("<s>", "The"), ("<s>", "<s>The"), ("", "<s>The"), ("", "<s><s>The")):
        assert made.codec.pair(*pair) == want
    for text in ("<s>", "<s><s>", ""):  # nothing is left to be scored
        assert made.loglikelihood_rolling([text])[0].log_likelihood == 0
        assert made.loglikelihood([("", text)])[0].log_likelihood == 0
    # Only what stands at the beginning: behind a context it is text.
    prompt, target = made.codec.pair("The", "<s>x")
    assert target[0] == BOS and prompt.ids[0] == BOS and len(prompt.ids) > 1


def test_a_context_that_the_tokenizer_drops_costs_no_token(trio):
    from tokenizers import normalizers

    made = model(trio("llama"), "plain")
    made.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    prompt, target = made.codec.pair("\u200b", "The")
    assert prompt.ids == (BOS,) and target == made.codec.pair("", "The")[1]


def test_explained_and_measured_alike(trio):
    """`explain` and the bits per byte of `cpt` count the same tokens."""
    trio = trio("llama")
    made = model(trio, "adds")
    for text in ("The cat sat", "<s>The cat"):
        (score,) = made.loglikelihood_rolling([text])
        tokens = explain_text(made, text).tokens
        assert BOS not in [token.id for token in tokens]
        assert explain_text(made, text).log_likelihood == pytest.approx(score.log_likelihood)
        (given,) = explain_given(made, [("", text)])
        assert [token.id for token in given.tokens] == [token.id for token in tokens]
    alone, plain = trio.naive.models["large_ins"], tokenizer("plain")
    want = measure(alone, Windows.of(TEXTS, plain, 96), 2)
    assert measure(alone, Windows.of(TEXTS, tokenizer("adds"), 96), 2) == want


@pytest.mark.parametrize("manner", ["adds", "plain"])
def test_hf_without_its_second_bos(pico, manner, tmp_path):
    """The same numbers as `hf` with ``add_bos_token=False``, which is said in the docs."""
    tokenizer(manner).save_pretrained(tmp_path)
    folder, other = pico("llama", padded=False)["small_cpt"], str(tmp_path)
    asked = instances("loglikelihood_rolling", [(text,) for text in TEXTS])
    arguments = {"tokenizer": other, "dtype": "float32", "device": "cpu"}
    hf = HFLM(folder, softmax_dtype="float32", add_bos_token=False, **arguments)
    want = hf.loglikelihood_rolling(asked, disable_tqdm=True)
    made = TriMix.from_pretrained(folder, policy="large_ins", **arguments)
    got = [score.log_likelihood for score in made.loglikelihood_rolling(TEXTS)]
    assert got == pytest.approx(want, rel=1e-6)
