"""The texts: reading, and what is kept apart from what.

Invariant: nothing is fitted on test text, neither the tokenizer nor a model; recipes are settled on
development text. A training document that shares a run of characters with either is dropped.

| language | the bases and the tokenizer read | small_cpt reads | dev | test |
|---|---|---|---|---|
| English | the Bible up to Colossians | the same | 800 verses | the last 1,600 verses |
| Tibetan | every fourth document | all documents | 60 documents | the last 60 documents |
| Uyghur | SIB-200's training sentences | the treebank's training part | its end | its test part |
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

OVERLAP = 40  # characters: a training document sharing such a run with held-out text is dropped
LINES = {"en": 20, "ug": 20}  # verses or sentences that make a document, as they follow each other
FILES = (
    "kjv.txt",
    "bo_nanhai.txt",
    "sib200_uig_Arab_train.tsv",
    "ug_udt_train.txt",
    "ug_udt_test.txt",
)


class Corpus(NamedTuple):
    """Documents of one language; every list but `cpt` and `base` shares nothing with another.

    Attributes:
        base: What the bases and the tokenizer are trained on.
        cpt: What small_cpt is trained on.
        dev: For settling recipes.
        test: For the evaluation.
    """

    base: list[str]
    cpt: list[str]
    dev: list[str]
    test: list[str]


class HeldOut(NamedTuple):
    """How many lines at the end of a file are kept back.

    Attributes:
        dev: Before the test lines.
        test: At the end.
    """

    dev: int
    test: int


HELD_OUT = {"en": HeldOut(800, 1600), "bo": HeldOut(60, 60), "ug": HeldOut(160, 0)}


def read_lines(path: Path) -> list[str]:
    """Reads the non-empty lines of a UTF-8 file.

    Args:
        path: Plain text.

    Returns:
        Lines without byte-order marks, each run of blanks made one space.
    """
    lines = path.read_text(encoding="utf-8").replace("\ufeff", "").split("\n")
    return [" ".join(line.split()) for line in lines if line.strip()]


def without_overlap(train: list[str], held_out: list[str], run: int = OVERLAP) -> list[str]:
    """Drops training documents that quote the held-out ones.

    Blanks and tseks are ignored, because the Tibetan corpus separates words in two ways.

    Args:
        train: Candidate training documents.
        held_out: Documents to stay unseen.
        run: Length, in characters, of a shared run that counts as a quotation.

    Returns:
        The documents of `train` that share no sampled run with `held_out`, and equal none of it.
    """

    def squeeze(text: str) -> str:
        return text.replace(" ", "").replace("་", "")

    whole = set(map(squeeze, held_out))
    seen = set()
    for text in whole:
        seen.update(text[i : i + run] for i in range(0, len(text) - run, run // 2))

    def quotes(text: str) -> bool:
        return text in whole or any(text[i : i + run] in seen for i in range(len(text) - run))

    return [document for document in train if not quotes(squeeze(document))]


def joined(lines: list[str], count: int, between: str) -> list[str]:
    """Makes documents of so many lines each."""
    return [between.join(lines[i : i + count]) for i in range(0, len(lines), count)]


def split(lines: list[str], held_out: HeldOut) -> tuple[list[str], list[str], list[str]]:
    """Splits lines, in their order, into training, development and test lines.

    Returns:
        The three; training lines that quote one of the others are dropped.
    """
    end = len(lines) - held_out.test
    dev, test = lines[end - held_out.dev : end], lines[end:]
    return without_overlap(lines[: end - held_out.dev], dev + test), dev, test


def load(folder: Path) -> dict[str, Corpus]:
    """Reads the five files and splits them.

    Args:
        folder: Holds `FILES`.

    Returns:
        A corpus by language: en, bo, ug.

    Raises:
        SystemExit: A file is missing.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise SystemExit(f"{folder} lacks {', '.join(missing)}: the README says where to get them")
    kjv, nanhai, sib, treebank, treebank_test = (read_lines(folder / name) for name in FILES)
    en = [joined(part, LINES["en"], "\n") for part in split(kjv, HELD_OUT["en"])]
    bo = split(nanhai, HELD_OUT["bo"])
    read, dev, _ = split(treebank, HELD_OUT["ug"])
    ug = [
        joined(part, LINES["ug"], " ")
        for part in (without_overlap(read, treebank_test), dev, treebank_test)
    ]
    sentences = [line.split(" ", 2)[2] for line in sib[1:]]  # a number, a topic, the sentence
    return {
        "en": Corpus(en[0], *en),
        "bo": Corpus(bo[0][::4], *bo),
        "ug": Corpus(without_overlap(sentences, dev + treebank_test), *ug),
    }
