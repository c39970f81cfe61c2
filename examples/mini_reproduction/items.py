"""Items of the three tasks, made from running text by seeded functions; prompts stand here alone.

* choice: four words are offered, and a text that one of them continues.
* order: are the words of a clause in order, or shuffled?
* jumble: the words of a clause, shuffled, are to be put in order.

All three need the language (which word comes next?) and the task (only words that are offered may
come; "yes" and "no" are the answers). The same functions make the English items that large_ins
learns from and the Tibetan and Uyghur ones that everybody is judged on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import regex

Item = dict[str, Any]
Maker = Callable[[list[str], int, random.Random], list[Item]]

CHOICE = "Go on with one of these words: {words}\nAnswer: {text}"
ORDER = "Are these words in order, yes or no? {words}\nAnswer:"
JUMBLE = "Put these words in order: {words}\nAnswer:"

_WORD = regex.compile(r"\p{L}[\p{L}\p{M}\p{N}་'-]*")
_BREAK = regex.compile(r"[^\p{L}\p{M}\p{N}\s་'-]+")  # everything that ends a clause
OPTIONS = 4
TEXT_WORDS = (5, 14)  # words of context in a choice
CLAUSE_WORDS = (5, 8)  # words of a clause that is put in order


def pieces(documents: list[str]) -> Iterator[list[str]]:
    """Cuts every line of the documents into disjoint runs of words.

    Yields:
        Words with what is attached to them; at most one more than the longest context.
    """
    size = TEXT_WORDS[1] + 1
    for document in documents:
        for line in document.split("\n"):
            words = line.split()
            for i in range(0, len(words), size):
                yield words[i : i + size]


def clauses(documents: list[str]) -> Iterator[list[str]]:
    """Finds what stands between two marks of punctuation, if its length is right.

    Yields:
        Words, no two of them equal: the order of equal ones could not be told.
    """
    low, high = CLAUSE_WORDS
    for document in documents:
        for line in document.split("\n"):
            for part in _BREAK.split(line):
                words = part.split()
                if low <= len(words) <= high and len(set(words)) == len(words):
                    yield words


def shuffled(words: list[str], rng: random.Random) -> list[str]:
    """Gives the words in another order."""
    found = words
    while found == words:
        found = rng.sample(words, len(words))
    return found


def drawn(found: Iterator[list[str]], count: int, rng: random.Random) -> list[list[str]]:
    """Draws so many of what was found, or all of it, in random order."""
    pool = list(found)
    return rng.sample(pool, min(count, len(pool)))


def choice(documents: list[str], count: int, rng: random.Random) -> list[Item]:
    """Makes questions: which of four words goes on with the text?

    The wrong ones are drawn from the running text, so that frequent words are offered often.

    Returns:
        Items with `prompt`, `answer`, `choices` and `label`.
    """
    low, _ = TEXT_WORDS
    pool = [words for words in pieces(documents) if len(words) > low]
    every = [word for words in pool for word in words if _WORD.fullmatch(word)]
    items = []
    for words in rng.sample(pool, len(pool)):
        places = [i for i in range(low, len(words)) if _WORD.fullmatch(words[i])]
        if not places or len(items) == count:
            continue
        place = rng.choice(places)
        options = [words[place]]
        while len(options) < OPTIONS:
            options = list(dict.fromkeys([*options, rng.choice(every)]))
        rng.shuffle(options)
        text = " ".join(words[:place])
        items.append(
            {
                "prompt": CHOICE.format(words=", ".join(options), text=text),
                "answer": words[place],
                "choices": options,
                "label": options.index(words[place]),
            }
        )
    return items


def order(documents: list[str], count: int, rng: random.Random) -> list[Item]:
    """Makes questions: are these words in order? Every other clause is shuffled.

    Returns:
        Items with `prompt`, `answer`, `choices` and `label`.
    """
    items = []
    for i, words in enumerate(drawn(clauses(documents), count, rng)):
        seen = shuffled(words, rng) if i % 2 else words
        answer = ("yes", "no")[i % 2]
        prompt = ORDER.format(words=" ".join(seen))
        items.append({"prompt": prompt, "answer": answer, "choices": ["yes", "no"], "label": i % 2})
    return items


def jumble(documents: list[str], count: int, rng: random.Random) -> list[Item]:
    """Makes shuffled clauses that are to be put in order.

    Returns:
        Items with `prompt` and `answer`.
    """
    return [
        {
            "prompt": JUMBLE.format(words=" ".join(shuffled(words, rng))),
            "answer": " ".join(words),
        }
        for words in drawn(clauses(documents), count, rng)
    ]


MAKERS: dict[str, Maker] = {"choice": choice, "order": order, "jumble": jumble}
