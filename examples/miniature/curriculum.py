"""What models read beside running text: documents that have the shape of tasks, and repetitions.

Real corpora are full of lists, dialogues, glossaries, headlines over articles, questions with
answers. These here are made of English text (`tasks`), and of nonsense (`nonsense`): words that the
bases read, of all languages, in random order. With nonsense a task comes apart from the language
that it is told in, and nothing is learnt of the language; without it, what is learnt in English
stays with English. `repeats` are texts that come again, which keeps copying alive.
"""

from __future__ import annotations

import random

from problems import MAKERS, Text
from texts import Corpus, Sentence
from wording import document

SHOTS = (1, 4)  # problems in a document, least and most
_NONSENSE = 200  # words of a document of nonsense
_RUN = (4, 20)  # words that come again, least and most


def tasks(corpus: Corpus, count: int, rng: random.Random) -> list[list[str]]:
    """Makes documents of tasks out of English text.

    Args:
        corpus: English.
        count: Documents wanted.
        rng: Draws.

    Returns:
        Of each, questions and answers in turn.
    """
    text, kinds = Text(corpus.base, rng), [*MAKERS, "topic"]
    return [
        _topics(corpus.topics["train"], rng) if kind == "topic" else _made(kind, text, text)
        for kind in rng.choices(kinds, k=count)
    ]


def nonsense(corpora: list[Corpus], count: int, rng: random.Random) -> list[list[str]]:
    """Makes documents of tasks out of random words, of one language or of all.

    Args:
        corpora: Of all languages, English first.
        count: Documents wanted.
        rng: Draws.

    Returns:
        Of each, questions and answers in turn. There is nothing to `finish` in nonsense.
    """
    pools = [[word for text in corpus.base for word in text.split()] for corpus in corpora]
    documents = []
    for i in range(max(count // 20, 30)):
        mine = pools if i % 3 == 0 else [rng.choice(pools)]
        documents.append(" ".join(rng.choice(rng.choice(mine)) for _ in range(_NONSENSE)))
    text, english = Text(documents, rng), Text(corpora[0].base, rng)
    kinds = [kind for kind in MAKERS if kind != "finish"]
    return [_made(rng.choice(kinds), text, rng.choice((english, text))) for _ in range(count)]


def again(corpora: list[Corpus], count: int, rng: random.Random) -> list[str]:
    """Makes texts in which runs of words come again, of one language or of all.

    What `streams.Repeats` is to rows of tokens, these are to `trimix cpt`, which reads texts.
    """
    pools = [[word for text in corpus.base for word in text.split()] for corpus in corpora]
    made = []
    for _ in range(count):
        words: list[str] = []
        while len(words) < _NONSENSE:
            pool = rng.choice(pools)
            start = rng.randrange(len(pool) - _RUN[1])
            run = pool[start : start + rng.randint(*_RUN)]
            if rng.random() < 0.5:
                run = [rng.choice(pool) for _ in run]
            words += [*run, *rng.choices(pool, k=rng.randrange(8)), *run]
        made.append(" ".join(words))
    return made


def _made(kind: str, text: Text, english: Text) -> list[str]:
    problems = [MAKERS[kind](text, english) for _ in range(text.rng.randint(*SHOTS))]
    return document(kind, problems, text.rng)


def _topics(sentences: list[Sentence], rng: random.Random) -> list[str]:
    drawn = rng.sample(sentences, rng.randint(*SHOTS))
    problems = [{"passage": one.text, "answer": one.topic} for one in drawn]
    return document("topic", problems, rng)
