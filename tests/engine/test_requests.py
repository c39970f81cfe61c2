"""What the engine does with requests of token ids that fit no simple case."""

import pytest
import torch

from tests.support.loaded import by_index
from trimix_lm_eval.engine import scorer
from trimix_lm_eval.engine.prefill import cut
from trimix_lm_eval.engine.request import Prompt, Score, ScoringRequest
from trimix_lm_eval.utils.windows import continuation_windows

MAX_LENGTH = 12
A = (256, 72, 101, 108, 108, 111)
B = (256, 72, 101, 108, 112)


@pytest.fixture(scope="module")
def scored(trio):
    """By index, the scores of an empty and a long continuation, of options, and of a context."""
    model = trio("llama").weighted("ppl", batch_size=2)
    long = tuple(range(60, 90))
    requests = [
        ScoringRequest(Prompt(A), ()),
        ScoringRequest(Prompt(A), long),
        ScoringRequest(Prompt(A), (33,), question="which"),
        ScoringRequest(Prompt(B), (33,), question="which"),
        ScoringRequest(Prompt(A[:4]), (33,)),
        ScoringRequest(Prompt(B), (33,)),
    ]
    with torch.inference_mode():
        return by_index(scorer.score(model.fuser, requests, 2, MAX_LENGTH)), long


def test_an_empty_continuation_is_certain(scored):
    assert scored[0][0] == Score(0.0, True, None)


def test_a_long_continuation_is_scored_in_windows_under_one_choice(trio, scored):
    found, long = scored
    naive, weights = trio("llama").naive, found[1].choice.weights[:2]
    total = 0.0
    for context, part in continuation_windows(A, long, MAX_LENGTH):
        ids = [*context, *part]
        total -= float(naive.nll(naive.fused(ids[:-1], *weights), ids, len(context)).sum())
    assert found[1].log_likelihood == pytest.approx(total, abs=1e-4)
    assert found[1].choice.tokens == len(A) - 1, "chosen by the context, not by the windows"


def test_options_of_a_question_choose_by_what_their_contexts_share(scored):
    found, _ = scored
    assert found[2].choice == found[3].choice
    assert found[2].choice.nlls == pytest.approx(found[4].choice.nlls, abs=1e-6)
    assert found[5].choice.tokens == len(B) - 1, "a request without a question is one of its own"


def test_a_prompt_that_is_cut_keeps_a_mask_that_shows_something():
    prompt = Prompt((1, 2, 3, 4, 5), (False, True, False, True, False))
    assert cut(prompt, 5) is prompt
    assert cut(prompt, 3) == Prompt((3, 4, 5), (False, True, False))
    # The first token has no prediction: a mask that shows it alone shows nothing.
    assert cut(prompt, 2) == Prompt((4, 5), None)
    assert cut(Prompt((1, 2, 3)), 2) == Prompt((2, 3))
