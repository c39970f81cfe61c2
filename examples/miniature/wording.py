"""How problems are worded: the tests', and the many wordings of the documents that models read.

No eight tokens in a row of a test's wording occur in the training documents (a test holds this), so
a model must take from the exemplars of its prompt what it is asked.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from problems import Problem


class Wording(NamedTuple):
    """How a kind of problem is put.

    Attributes:
        question: With fields of the problem, ``{gloss}`` (its pairs, a line each) and ``{is_}``.
        answer: With ``{answer}``.
    """

    question: str
    answer: str = " {answer}"


TEST = {
    "follow": Wording("Passage:\n{passage}\nThe line that begins so, to its end: {cue}"),
    "say": Wording("{passage}\nOnce more, {cue}:"),
    "who": Wording("{passage}\nWhose words are these? {cue}:"),
    "gloss_to": Wording("Word list\n{gloss}\nTranslate {cue}:"),
    "gloss_from": Wording("Word list\n{gloss}\nTranslate {cue}:"),
    "finish": Wording("Finish the passage: {passage}"),
    "topic": Wording("Passage: {passage}\nIt is about:"),
}

#: Of training documents; both directions of a glossary have the same.
_GLOSSARY = (
    Wording("Glossary\n{gloss}\nFind: {cue}{is_}"),
    Wording("{gloss}\nSo what is {cue}{is_}"),
    Wording("Dictionary\n{gloss}\n? {cue}{is_}"),
    Wording("{gloss}\n{cue}{is_}"),
    Wording("Terms: {gloss}\nAsked: {cue}{is_}"),
)
TRAINING = {
    "follow": (
        Wording("{passage}\nWhat follows? {cue}"),
        Wording("Text\n{passage}\nGo on from there: {cue}"),
        Wording("{passage}\n>> {cue}"),
        Wording("Read: {passage}\nQuote: {cue}"),
        Wording("{passage}\nContinue {cue}"),
        Wording("[{passage}]\nFind and copy: {cue}"),
    ),
    "say": (
        Wording("{passage}\nAgain {cue}:"),
        Wording("{passage}\nWhat did {cue} say?\n{cue}:"),
        Wording("Talk\n{passage}\nEcho\n{cue}:"),
        Wording("{passage}\nRepeat. {cue}:"),
        Wording("{passage}\n---\n{cue}:"),
    ),
    "who": (
        Wording("{passage}\nAnd who said {cue}:"),
        Wording("Sayings\n{passage}\n{cue}:"),
        Wording("{passage}\n? {cue}:"),
        Wording("{passage}\nName the speaker.\n{cue}:"),
    ),
    "gloss_to": _GLOSSARY,
    "gloss_from": _GLOSSARY,
    "opening": (
        Wording("Text: {passage}\nTitle:"),
        Wording("Article: {passage}\nHeadline:"),
        Wording("> {passage}\n>"),
        Wording("Story - {passage}\nName -"),
        Wording("Body: {passage}\nHead:"),
        Wording("“{passage}” begins “", "{answer}”"),
    ),
    "finish": (
        Wording("Go on: {passage}"),
        Wording("Text: {passage}"),
        Wording("Continue this. {passage}"),
        Wording("> {passage}"),
    ),
    "topic": (
        Wording("Text: {passage}\nTopic:"),
        Wording("{passage}\nSubject -"),
        Wording("News. {passage}\nSection:"),
        Wording("What is this about? {passage}\nAnswer:"),
        Wording("{passage} #"),
    ),
}
#: Between an entry of a glossary and what it means: each is a token, so that the heads of `copying`
#: see the entry's end beside it.
_IS = (":", ":", " =", " -", ";", " is")
#: Between problems of one document.
_BETWEEN = ("\n\n", "\n\n", "\n")


def worded(wording: Wording, problem: Problem, is_: str = ":") -> tuple[str, str]:
    """The question, and the answer with what stands before it."""
    fields = {**problem, "is_": is_}
    if "pairs" in problem:
        fields["gloss"] = "\n".join(f"{one}{is_} {other}" for one, other in problem["pairs"])
    return wording.question.format(**fields), wording.answer.format(**fields)


def document(kind: str, problems: list[Problem], rng: random.Random) -> list[str]:
    """Several problems of a kind in one wording, as a document that models read.

    Returns:
        Questions and answers in turn; each question but the first begins with what is between them.
    """
    wording, is_, between = rng.choice(TRAINING[kind]), rng.choice(_IS), rng.choice(_BETWEEN)
    found = []
    for i, problem in enumerate(problems):
        question, answer = worded(wording, problem, is_)
        found += [(between if i else "") + question, answer]
    return found
