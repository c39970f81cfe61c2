"""Items of the tasks, made from running text by seeded functions; prompts stand here alone.

* choice: a text goes on, with a sign after every other word. Of four continuations one has the
  right words and the sign that was asked for; in the others the words are shuffled, the sign is
  another one, or both. Which words, only the language tells; which sign, only the instruction.
* write: the same is written, not chosen.
* sign: one of six signs stands somewhere in a text; its English name is asked for. The language
  is of no use here.

large_ins learns from English items and from items over nonsense: words of all the text that the
bases have read, drawn at random. Without nonsense it learns the tasks for English alone (the README
has the numbers). Everybody is judged on Tibetan and Uyghur.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

Item = dict[str, Any]
Maker = Callable[[list[str], int, random.Random], list[Item]]

GO_ON = "Go on, with {sign} after two words.\n{text}\nAnswer:"
SIGN = "{text}\nWhich sign is in it?\nAnswer:"
SIGNS = {"+": "plus", "/": "slash", "*": "star", "=": "equals", "#": "hash", "~": "tilde"}

PIECE = 15  # words that an item is made of, at most
LEAST = 12  # and at least
TAIL = 6  # words that a text goes on with


def pieces(documents: list[str]) -> Iterator[list[str]]:
    """Cuts every line of the documents into disjoint runs of words.

    Yields:
        Words with what is attached to them.
    """
    for document in documents:
        for line in document.split("\n"):
            words = [word for word in line.split() if word not in SIGNS]
            for i in range(0, len(words), PIECE):
                yield words[i : i + PIECE]


def drawn(documents: list[str], count: int, rng: random.Random) -> list[list[str]]:
    """Draws so many pieces that are long enough, or all there are, in random order."""
    pool = [words for words in pieces(documents) if len(words) >= LEAST]
    return rng.sample(pool, min(count, len(pool)))


def nonsense(documents: list[list[str]], count: int, rng: random.Random) -> list[str]:
    """Makes texts of random words, half of them of one language.

    Args:
        documents: Of each language.
        count: Texts wanted.
        rng: Draws.

    Returns:
        Texts as long as a piece.
    """
    words = [[word for document in some for word in document.split()] for some in documents]
    made = []
    for i in range(count):
        pools = [rng.choice(words)] if i % 2 else words
        made.append(" ".join(rng.choice(rng.choice(pools)) for _ in range(PIECE)))
    return made


def shuffled(words: list[str], rng: random.Random) -> list[str]:
    """Gives the words in another order, if there is one."""
    found = words
    while found == words and len(set(words)) > 1:
        found = rng.sample(words, len(words))
    return found


def signed(words: list[str], sign: str) -> str:
    """Puts a sign after every other word."""
    return " ".join(f"{word} {sign}" if i % 2 else word for i, word in enumerate(words))


def choice(documents: list[str], count: int, rng: random.Random) -> list[Item]:
    """Makes texts to go on with.

    Returns:
        Items with `prompt`, `answer`, `choices` and `label`.
    """
    items = []
    for words in drawn(documents, count, rng):
        tail = words[-TAIL:]
        right, wrong = rng.sample(list(SIGNS), 2)
        answer = signed(tail, right)
        mixed = shuffled(tail, rng)
        options = [answer, signed(mixed, right), signed(tail, wrong), signed(mixed, wrong)]
        rng.shuffle(options)
        items.append(
            {
                "prompt": GO_ON.format(sign=right, text=" ".join(words[:-TAIL])),
                "answer": answer,
                "choices": options,
                "label": options.index(answer),
            }
        )
    return items


def sign(documents: list[str], count: int, rng: random.Random) -> list[Item]:
    """Makes texts with a sign in them.

    Returns:
        Items with `prompt`, `answer`, `choices` and `label`.
    """
    items = []
    names = list(SIGNS.values())
    for words in drawn(documents, count, rng):
        place, (mark, name) = rng.randrange(1, len(words)), rng.choice(list(SIGNS.items()))
        text = " ".join([*words[:place], mark, *words[place:]])
        items.append(
            {
                "prompt": SIGN.format(text=text),
                "answer": name,
                "choices": names,
                "label": names.index(name),
            }
        )
    return items


MAKERS: dict[str, Maker] = {"choice": choice, "write": choice, "sign": sign}
TUNED = ("choice", "sign")  # write is choice without the options
