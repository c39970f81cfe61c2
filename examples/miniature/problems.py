"""Problems of the tasks, made from running text: what is asked and what is right, not its wording.

Every problem can be solved by reading what stands in the prompt; how well depends on knowing the
task, and on knowing the language in which the answer has to be found, or written.

* follow: the lines of a passage; how does the line end that begins so? (reading comprehension)
* say: who said what, line by line; what did this one say? (dialogue)
* who: the same, and who said this?
* gloss_to, gloss_from: a glossary between English and the language, and one entry to translate
* opening: a passage; with which words does it open? (the title of a text without one) Models read
  it, and are not judged by it: who echoes the passage has it right.
* finish: a passage, and the true continuation among others in which two words changed places
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

Problem = dict[str, Any]

NAMES = ("Adam", "Ruth", "Eli", "Boaz", "Naomi", "Jesse", "Obed", "Esther", "Joel", "Amos", "Leah")
_NO_WORDS = set("།༎,.;:?!،؛؟-–«»\"'()[]“”")


class Text:
    """Words of a language, document by document; runs are drawn without one being used twice.

    Args:
        documents: Words with single spaces between them.
        rng: Draws.
    """

    def __init__(self, documents: list[str], rng: random.Random) -> None:
        self._documents = [words for document in documents if (words := document.split())]
        self._words = sorted(
            {
                word
                for words in self._documents
                for word in words
                if len(word) > 3 and not _NO_WORDS & set(word)
            }
        )
        self.rng = rng
        self._left: dict[int, Iterator[list[str]]] = {}

    def run(self, length: int) -> list[str]:
        """The next words of some document, as they follow each other."""
        while True:
            for words in self._left.get(length, ()):
                return words
            self._left[length] = self._runs(length)

    def _runs(self, length: int) -> Iterator[list[str]]:
        """Every run of all documents, cut anew from a place drawn anew, in random order."""
        runs = []
        for words in self._documents:
            start = self.rng.randrange(length)
            runs += [words[i : i + length] for i in range(start, len(words) - length + 1, length)]
        if not runs:
            raise ValueError(f"no document has {length} words")
        self.rng.shuffle(runs)
        return iter(runs)

    def word(self) -> str:
        """A word as a dictionary has them: no shorter than four letters, rare ones as well."""
        return self.rng.choice(self._words)

    def phrase(self) -> str:
        """Two words that follow each other, no sign among them."""
        while True:
            one, other = self.run(2)
            if not _NO_WORDS & set(one + other):
                return f"{one} {other}"


def follow(text: Text, english: Text) -> Problem:
    """How does the line end that begins so? Lines of six words; two are given."""
    while True:
        run = text.run(18)
        lines = [run[i : i + 6] for i in (0, 6, 12)]
        which = text.rng.randrange(3)
        cue = lines[which][:2]
        if sum(run[i : i + 2] == cue for i in range(17)) == 1 and not _NO_WORDS & set("".join(cue)):
            break
    answers = [" ".join(line[2:]) for line in lines]
    return {
        "passage": "\n".join(map(" ".join, lines)),
        "cue": " ".join(cue),
        **_options(answers.pop(which), [*answers, " ".join(reversed(lines[which][2:]))], text.rng),
    }


def say(text: Text, english: Text) -> Problem:
    """What did this one say? Four speakers, five words each."""
    names, lines = _spoken(text)
    spoken = "\n".join(f"{name}: {line}" for name, line in zip(names, lines, strict=True))
    which = text.rng.randrange(4)
    return {
        "passage": spoken,
        "cue": names[which],
        **_options(lines.pop(which), lines, text.rng),
    }


def who(text: Text, english: Text) -> Problem:
    """Who said this? Four speakers, five words each."""
    names, lines = _spoken(text)
    spoken = "\n".join(f"{line}: {name}" for name, line in zip(names, lines, strict=True))
    which = text.rng.randrange(4)
    return {
        "passage": spoken,
        "cue": lines[which],
        **_options(names.pop(which), names, text.rng),
    }


def _spoken(text: Text) -> tuple[list[str], list[str]]:
    """Names, and different lines."""
    lines: dict[str, None] = {}
    while len(lines) < 4:
        lines[" ".join(text.run(5))] = None
    return text.rng.sample(NAMES, 4), list(lines)


def gloss_to(text: Text, english: Text) -> Problem:
    """A glossary from English words to phrases of two words of the language."""
    return _glossary(text, english, back=False)


def gloss_from(text: Text, english: Text) -> Problem:
    """A glossary from phrases of two words of the language to English words."""
    return _glossary(text, english, back=True)


def _glossary(text: Text, english: Text, back: bool) -> Problem:
    ours: dict[str, None] = {}
    theirs: dict[str, None] = {}
    while len(ours) < 5:
        ours[text.phrase()] = None
    while len(theirs) < 5:
        theirs[english.word()] = None
    keys, values = (list(ours), list(theirs)) if back else (list(theirs), list(ours))
    pairs = list(zip(keys, values, strict=True))
    which = text.rng.randrange(5)
    return {
        "pairs": pairs,
        "cue": keys[which],
        **_options(values.pop(which), values, text.rng),
    }


def opening(text: Text, english: Text) -> Problem:
    """With which four words does a passage of eighteen open?"""
    run = text.run(18)
    starts = [run[i : i + 4] for i in (0, 6, 12)]
    answer, *others = map(" ".join, starts)
    return {
        "passage": " ".join(run),
        **_options(answer, [*others, " ".join(reversed(starts[0]))], text.rng),
    }


def finish(text: Text, english: Text) -> Problem:
    """How does a passage go on? In three of four continuations two words have changed places."""
    while True:
        run = text.run(16)
        tail = run[-6:]
        found = {tuple(tail): None}
        for _ in range(30):
            i, j = text.rng.sample(range(6), 2)
            other = list(tail)
            other[i], other[j] = other[j], other[i]
            found[tuple(other)] = None
        if len(found) >= 4:
            break
    answer, *others = map(" ".join, found)
    return {"passage": " ".join(run[:-6]), **_options(answer, others[:3], text.rng)}


def _options(answer: str, others: list[str], rng: random.Random) -> Problem:
    """The answer among others, in random order."""
    choices = [answer, *others]
    rng.shuffle(choices)
    return {"answer": answer, "choices": choices, "label": choices.index(answer)}


MAKERS: dict[str, Callable[[Text, Text], Problem]] = {
    "follow": follow,
    "say": say,
    "who": who,
    "gloss_to": gloss_to,
    "gloss_from": gloss_from,
    "opening": opening,
    "finish": finish,
}
