"""The examples that train models: their modules, and texts to train on."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LETTERS = {"en": "abdegilmnorst", "bo": "ཀགངཅཉཏདནཔབམཡརལས", "ug": "ئابتجدرزسشغفقكلمنويى"}


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """An example's modules import each other as a program's do; afterwards they are forgotten."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def sentences(language: str, count: int, words: int, rng: random.Random) -> list[str]:
    """Nonsense with some order in it: every word has three words that may follow it."""
    vocabulary = ["".join(rng.choices(LETTERS[language], k=rng.randint(2, 6))) for _ in range(400)]
    follows = {word: rng.choices(vocabulary, k=3) for word in vocabulary}
    found = []
    for _ in range(count):
        word, line = rng.choice(vocabulary), []
        for _ in range(rng.randint(words - 3, words + 3)):
            line.append(word)
            word = rng.choice(follows[word])
        found.append(" ".join(line))
    return found
