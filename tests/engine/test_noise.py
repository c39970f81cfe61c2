"""Noise by counter: the numbers that the definition gives, and as random as noise must be."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from trimix_lm_eval.engine.noise import _from_words, gumbel, seed_words

WORD = 2**32


def naive(seed, step, token):
    """One number, with Python's integers."""

    def mix(word):
        word ^= word >> 16
        word = word * 0x85EBCA6B % WORD
        word ^= word >> 13
        word = word * 0xC2B2AE35 % WORD
        return word ^ (word >> 16)

    digest = hashlib.blake2b(str(seed).encode(), digest_size=8).digest()
    first, second = int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big")
    keys = mix((first + step) % WORD), mix(second ^ mix(step * 0x9E3779B9 % WORD))
    word = mix(mix((token + keys[0]) % WORD) ^ keys[1])
    return -math.log(-math.log1p(-(word + 0.5) / WORD))


def noise(seeds, steps, vocab_size):
    words = torch.tensor([seed_words(seed) for seed in seeds], dtype=torch.int32)
    return gumbel(words, torch.as_tensor(steps), vocab_size)


def uniform(seeds, steps, vocab_size):
    """The uniform numbers behind the noise."""
    return (-(-noise(seeds, steps, vocab_size).double()).exp()).exp().numpy()


def test_each_number_is_the_one_of_its_place():
    seeds, steps = [0, 1234, -5, 10**30], [0, 1, 700, 2**31 - 1]
    found = noise(seeds, steps, 300)
    want = [
        [naive(*place, token) for token in range(300)] for place in zip(seeds, steps, strict=True)
    ]
    assert found.dtype == torch.float32
    assert np.allclose(found.numpy(), want, rtol=2e-6, atol=2e-6)
    assert torch.equal(noise(seeds[2:3], steps[2:3], 17), found[2:3, :17]), "alone, and fewer"


def test_a_million_numbers_are_uniform():
    values = uniform(range(1000), [7] * 1000, 1000).ravel()
    for bins in (16, 1000):
        counts, _ = np.histogram(values, bins, (0, 1))
        assert chisquare(counts).pvalue > 0.01
    # The ends, which decide what is drawn: a number in 2^16.
    for end in (values, 1 - values):
        assert abs((end < 2**-16).sum() - len(values) / 2**16) < 4 * math.sqrt(len(values) / 2**16)


@pytest.mark.parametrize("along", ["tokens", "steps", "seeds"])
@pytest.mark.parametrize("lag", [1, 2, 16, 64])
def test_neighbours_know_nothing_of_each_other(along, lag):
    """Serial correlation, and the joint distribution in 16 x 16 boxes."""
    if along == "tokens":
        values = uniform([3], [0], 200_000)[0]
    elif along == "steps":
        values = uniform([3] * 4000, range(4000), 50).T.ravel()
    else:
        values = uniform(range(4000), [3] * 4000, 50).T.ravel()
    one, other = values[:-lag], values[lag:]
    assert abs(np.corrcoef(one, other)[0, 1]) < 3.5 / math.sqrt(len(one))
    boxes, _, _ = np.histogram2d(one, other, 16, [[0, 1], [0, 1]])
    assert chisquare(boxes.ravel()).pvalue > 0.001


def test_a_million_draws_follow_their_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0, -6.0])
    draws = 10**6
    words = torch.tensor([seed_words(seed) for seed in range(100)], dtype=torch.int32)
    seeds, steps = words.repeat_interleave(draws // 100, 0), torch.arange(draws // 100).repeat(100)
    tokens = (logits + gumbel(seeds, steps, len(logits))).argmax(dim=-1)
    counts = torch.bincount(tokens, minlength=len(logits)).tolist()
    expected = (logits.double().softmax(-1) * draws).tolist()
    assert chisquare(counts, expected).pvalue > 0.01


def test_the_ends_are_numbers():
    """Those of 0 and of the highest word, which as a signed number is -1."""
    highest, lowest = _from_words(torch.tensor([0, -1], dtype=torch.int32)).tolist()
    assert highest == pytest.approx(33 * math.log(2), abs=1e-5)
    assert lowest == pytest.approx(-math.log(24 * math.log(2)), abs=1e-5)
