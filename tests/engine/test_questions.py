"""Options of one question share one choice, whatever their contexts are."""

from __future__ import annotations

import pytest

from tests.support.loaded import by_index
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.utils.errors import TrimixError

STEM = "The trophy did not fit in the suitcase because "
OPTIONS = [(STEM + "the trophy", " was too big."), (STEM + "the case", " was too big.")]


def test_options_that_differ_in_context_are_weighted_by_what_they_share(trio):
    model = trio("llama").weighted("ppl", batch_size=4)
    pairs = [*OPTIONS, ("", " was too big."), ("Another question", " here")]
    questions = [("t", 0), ("t", 0), ("t", 0), ("t", 1)]
    found = by_index(model.iter_loglikelihood(pairs, questions=questions))
    shared = model.codec.encode(OPTIONS[0][0])
    other = model.codec.encode(OPTIONS[1][0])
    length = next(i for i, (a, b) in enumerate(zip(shared, other, strict=False)) if a != b)
    text = model.tokenizer.decode(shared[:length])
    assert model.codec.encode(text) == shared[:length]
    assert text.endswith(" ")  # which lm-eval would move into the continuation
    alone = next(model.iter_generate([(text, SamplingParams(max_new_tokens=1))]))[2].choice
    for choice in (found[i].choice for i in range(3)):
        assert (choice.weights, choice.tokens) == (alone.weights, alone.tokens)
        assert choice.nll == pytest.approx(alone.nll, abs=1e-5)
    assert found[3].choice.weights == model.loglikelihood([pairs[3]])[0].choice.weights


def test_the_scores_are_those_of_the_whole_contexts_at_the_shared_point(trio):
    three = trio("llama")
    model = three.weighted("ppl")
    found = by_index(model.iter_loglikelihood(OPTIONS, questions=["q", "q"]))
    point = found[0].choice.weights
    fixed = three.weighted("fixed", alpha=point.alpha, beta=point.beta)
    for i, expected in enumerate(fixed.loglikelihood(OPTIONS)):
        assert found[i].log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-5)


def test_no_option_changes_the_choice_by_its_own_words(trio):
    model = trio("llama").weighted("ppl")
    chosen = set()
    for words in ("the trophy", "a zebra", "his 1234"):
        pairs = [OPTIONS[0], (STEM + words, " was too big."), (STEM + "we", " was too big.")]
        found = by_index(model.iter_loglikelihood(pairs, questions=["q"] * 3))
        chosen.add(found[0].choice)
    assert len(chosen) == 1


@pytest.mark.parametrize("call", ["generate", "loglikelihood_rolling", "loglikelihood"])
def test_one_text_is_not_taken_for_a_list_of_letters(trio, call):
    with pytest.raises(TrimixError, match="takes a list"):
        getattr(trio("llama").weighted("large_ins"), call)("one text")


def test_an_unknown_option_of_generate_is_named(trio):
    with pytest.raises(TrimixError, match="max_tokens.*\n.*max_new_tokens"):
        trio("llama").weighted("large_ins").generate(["x"], max_tokens=4)
