"""What models read beside running text: documents that have the shape of tasks, and repetitions.

Real corpora are full of lists, dialogues, glossaries, headlines over articles, questions with
answers. These here are made of English text (`tasks`), and of nonsense (`nonsense`): words that the
bases read, of all languages, in random order. With nonsense a task comes apart from the language
that it is told in, and nothing is learnt of the language; without it, what is learnt in English
stays with English. `repeats` are texts that come again, which keeps copying alive.

Nor is the text in a low-resource language all prose: it quotes itself, has refrains and headings,
and lists of words with their meaning. `quoting` and `lists` give it some; a small_cpt that reads
prose alone learns that its language never repeats itself, and copies no more (README.md).
"""

from __future__ import annotations

import itertools
import random

from problems import MAKERS, Text
from texts import Corpus, Sentence
from wording import document

SHOTS = (1, 4)  # problems in a document, least and most
_NONSENSE = 200  # words of a document of nonsense
_RUN = (4, 20)  # words that come again, least and most
_QUOTING = 0.5  # share of a language's documents that quote themselves
_QUOTED = 0.7  # how often they do, after each stretch of text
_BACK = 80  # words, as far back as they quote
_LISTED = 0.09  # bytes of lists for one of text


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


def quoting(documents: list[str], rng: random.Random) -> list[str]:
    """Lets half of the documents of a language quote themselves, here and there.

    Args:
        documents: Running text.
        rng: Draws.

    Returns:
        As many documents: all their words, in order, with some of them said twice.
    """
    return [
        _quoting(document.split(), rng) if rng.random() < _QUOTING else document
        for document in documents
    ]


def _quoting(words: list[str], rng: random.Random) -> str:
    found: list[str] = []
    rest = iter(words)
    while stretch := list(itertools.islice(rest, rng.randint(10, 30))):
        found += stretch
        if rng.random() < _QUOTED:
            run = rng.randint(4, 14)
            first = max(0, len(found) - _BACK)
            start = rng.randint(first, max(first, len(found) - run))
            found += found[start : start + run]
    return " ".join(found)


def lists(corpus: Corpus, english: Corpus, rng: random.Random) -> list[str]:
    """Makes lists of English words and phrases of a language, in either direction.

    What stands beside a word is drawn: nothing is learnt of what words mean.

    Args:
        corpus: The language; all that small_cpt reads of it.
        english: For the words.
        rng: Draws.

    Returns:
        Documents; entries of a list come again below it.
    """
    text, words = Text(corpus.cpt, rng), Text(english.base, rng)
    wanted = _LISTED * sum(len(document.encode()) for document in corpus.cpt)
    found: list[str] = []
    size = 0
    while size < wanted:
        lines: list[str] = []
        for _ in range(rng.randint(2, 4)):
            keys = {words.word(): None for _ in range(rng.randint(4, 7))}
            pairs = [(key, text.phrase()) for key in keys]
            if rng.random() < 0.5:
                pairs = [(phrase, key) for key, phrase in pairs]
            again = rng.sample(pairs, rng.randint(1, len(pairs)))
            lines += [f"{entry}: {meaning}" for entry, meaning in [*pairs, *again]]
        found.append("\n".join(lines))
        size += len(found[-1].encode())
    return found


def _made(kind: str, text: Text, english: Text) -> list[str]:
    problems = [MAKERS[kind](text, english) for _ in range(text.rng.randint(*SHOTS))]
    return document(kind, problems, text.rng)


def _topics(sentences: list[Sentence], rng: random.Random) -> list[str]:
    drawn = rng.sample(sentences, rng.randint(*SHOTS))
    problems = [{"passage": one.text, "answer": one.topic} for one in drawn]
    return document("topic", problems, rng)
