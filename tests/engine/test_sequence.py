"""Why a text ends, and which reason is told where several hold for one token."""

from __future__ import annotations

import pytest
import torch

from trimix_lm_eval.engine.prefill import Prompt
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.engine.sequence import Branch, GenerationRequest, NewTokens, Sequence
from trimix_lm_eval.fusion.config import LogitsProcessor, ResolvedFusion
from trimix_lm_eval.utils.errors import TrimixError

EOS, STOP, WORD = 2, 7, 5
PROMPT = Prompt((1, 3, 4))


def branch(which=0, stops=frozenset({EOS})):
    fusion = ResolvedFusion((1.0, float(which)), LogitsProcessor())
    return Branch(fusion, stops, {which: None}, torch.zeros(2, dtype=torch.float64))


def sequence(most=4, max_length=None, branches=None):
    """Token 7 completes a stop string, token 2 ends the text."""
    request = GenerationRequest(
        PROMPT,
        SamplingParams(most),
        (frozenset({EOS}),),
        lambda ids: ids[-1] == STOP,
        max_length,
    )
    return Sequence(0, request, branches or [branch()])


def new(*tokens, branches=1):
    weights = [torch.zeros(len(tokens), 2)] * branches
    return NewTokens(list(tokens), weights, 0, 0, None, tuple(range(branches)))


@pytest.mark.parametrize(
    ("tokens", "text", "reason", "drawn"),
    [
        ([WORD, EOS, WORD], [WORD], "eos", 2),
        ([WORD, STOP, WORD], [WORD, STOP], "stop", 2),
        ([WORD] * 5, [WORD] * 4, "length", 4),
        # Where the last token that was allowed is one that ends the text, it ended by itself.
        ([WORD, WORD, WORD, STOP, WORD], [WORD, WORD, WORD, STOP], "stop", 4),
        ([WORD, WORD, WORD, EOS, WORD], [WORD, WORD, WORD], "eos", 4),
        # After the last one nothing is looked at.
        ([WORD, WORD, WORD, WORD, EOS], [WORD] * 4, "length", 4),
    ],
)
def test_the_reason_and_the_text(tokens, text, reason, drawn):
    finished, count = sequence().append(new(*tokens))
    ((_, ids, why),) = finished
    assert (ids, why, count) == (text, reason, drawn)


def test_a_stop_token_comes_before_its_own_string():
    """The end-of-text string is a stop string, too, wherever lm-eval asks."""
    one = sequence()
    one = Sequence(0, one.request._replace(stop_strings=lambda ids: True), [branch()])
    assert [why for _, _, why in one.append(new(EOS))[0]] == ["eos"]


def test_branches_end_by_their_own_tokens():
    two = sequence(branches=[branch(0), branch(1, frozenset({WORD}))])
    finished, drawn = two.append(new(9, WORD, branches=2))
    assert [(ids, why) for _, ids, why in finished] == [([9], "eos")] and drawn == 2
    assert [list(b.choices) for b in two.branches] == [[0]] and two.token_ids == [9, WORD]
    finished, _ = two.append(new(8, 8))
    assert [(ids, why) for _, ids, why in finished] == [([9, WORD, 8, 8], "length")]


def test_a_full_context_ends_a_text():
    one = sequence(most=10, max_length=5)
    assert one.remaining_tokens == 2
    finished, _ = one.append(new(8, 8, 8))
    assert [(ids, why) for _, ids, why in finished] == [([8, 8], "length")]


def test_a_request_fits_its_context():
    """The prompt is cut from the left, so that all new tokens have room."""
    stops = (frozenset({EOS}),)
    made = GenerationRequest.fitted(PROMPT, SamplingParams(3), stops, None, 5)
    assert made.prompt.ids == (3, 4) and made.max_new_tokens == 3
    assert GenerationRequest.fitted(PROMPT, SamplingParams(3), stops, None, 6).prompt is PROMPT
    with pytest.raises(TrimixError, match="leave no room"):
        GenerationRequest.fitted(PROMPT, SamplingParams(5), stops, None, 5)


def test_steps_or_whole_texts_end_alike():
    """Drafts that are accepted after the end change neither text nor reason."""
    for size in (1, 2, 3, 6):
        one, tokens = sequence(), [WORD, WORD, STOP, WORD, EOS, WORD]
        for at in range(0, 6, size):
            finished, _ = one.append(new(*tokens[at : at + size]))
            if finished:
                break
        assert [(ids, why) for _, ids, why in finished] == [([WORD, WORD, STOP], "stop")]
