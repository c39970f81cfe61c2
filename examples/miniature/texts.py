"""The texts: reading, and what is kept apart from what.

Invariant: nothing is fitted on test text, neither the tokenizer nor a model; recipes are settled on
development text. A training document that shares a run of characters with either is dropped.

| language | the bases and the tokenizer read | small_cpt reads | dev | test |
|---|---|---|---|---|
| English | the Bible up to Colossians, SIB-200's first 500 sentences | the same | 800 verses | the last 1,600 verses |
| Tibetan | every fourth document of Nanhai | all documents | 60 documents | the last 60 documents |
| Uyghur | SIB-200's first 500 sentences | the treebank's training part, too | its end | its test part, SIB-200's other sentences |

SIB-200 has the same sentences in all languages, in three parts that are put together here: training,
development, test. Topics are asked of the last 404; of Tibetan nobody reads any of them.
"""  # noqa: E501  tables

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

OVERLAP = 40  # characters: a training document sharing such a run with held-out text is dropped
LINES = {"en": 20, "ug": 20}  # verses or sentences that make a document, as they follow each other
CODES = {"en": "eng_Latn", "bo": "bod_Tibt", "ug": "uig_Arab"}  # of SIB-200
PARTS = ("train", "dev", "test")
FILES = (
    "kjv.txt",
    "bo_nanhai.txt",
    "ug_udt_train.txt",
    "ug_udt_test.txt",
    *(f"sib200/{code}/{part}.tsv" for code in CODES.values() for part in PARTS),
)


class Sentence(NamedTuple):
    """A sentence of SIB-200 with its topic."""

    topic: str
    text: str


class Corpus(NamedTuple):
    """Documents of one language; every list but `cpt` and `base` shares nothing with another.

    Attributes:
        base: What the bases and the tokenizer are trained on.
        cpt: What small_cpt is trained on.
        dev: For settling recipes.
        test: For the evaluation.
        topics: Sentences with their topics for training, for settling recipes, for the evaluation.
    """

    base: list[str]
    cpt: list[str]
    dev: list[str]
    test: list[str]
    topics: dict[str, list[Sentence]]


class HeldOut(NamedTuple):
    """How many lines at the end of a file are kept back.

    Attributes:
        dev: Before the test lines.
        test: At the end.
    """

    dev: int
    test: int


HELD_OUT = {"en": HeldOut(800, 1600), "bo": HeldOut(60, 60), "ug": HeldOut(160, 0)}
TOPICS = HeldOut(100, 404)  # sentences of SIB-200


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
        run: Length, in characters, of the runs of held-out text that are looked for, one from each
            half of that length on.

    Returns:
        The documents of `train` that have none of these runs and equal no held-out document, so
        that none shares one and a half times `run` with them. (Exact at every place would be
        better by a few verses; the shipped models are trained on what this leaves.)
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


def topics(folder: Path, code: str) -> dict[str, list[Sentence]]:
    """Reads SIB-200's sentences of a language and splits them; they are parallel, by their number.

    Returns:
        Sentences by part: train, dev, test.
    """
    rows: dict[int, Sentence] = {}
    for part in PARTS:
        for line in (folder / f"{code}/{part}.tsv").read_text(encoding="utf-8").splitlines()[1:]:
            number, topic, text = line.split("\t", 2)
            rows[int(number)] = Sentence(topic, " ".join(text.split()))
    found = [rows[number] for number in sorted(rows)]
    end = len(found) - TOPICS.test
    start = end - TOPICS.dev
    return {"train": found[:start], "dev": found[start:end], "test": found[end:]}


def load(folder: Path) -> dict[str, Corpus]:
    """Reads the files and splits them.

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
    kjv, nanhai, treebank, treebank_test = (read_lines(folder / name) for name in FILES[:4])
    sib = {name: topics(folder / "sib200", code) for name, code in CODES.items()}
    read = {name: [one.text for one in found["train"]] for name, found in sib.items()}
    later = {name: [one.text for one in found["test"]] for name, found in sib.items()}
    verses = [joined(part, LINES["en"], "\n") for part in split(kjv, HELD_OUT["en"])]
    bo = split(nanhai, HELD_OUT["bo"])
    cpt, dev, _ = split(treebank, HELD_OUT["ug"])
    test = [*treebank_test, *later["ug"]]
    cpt, first = without_overlap(cpt, test), without_overlap(read["ug"], [*dev, *test])
    ug = [joined(part, LINES["ug"], " ") for part in (cpt, dev, test)]
    en = without_overlap(verses[0] + read["en"], verses[1] + verses[2] + later["en"])
    return {
        "en": Corpus(en, en, *verses[1:], sib["en"]),
        "bo": Corpus(bo[0][::4], *bo, sib["bo"]),
        "ug": Corpus(first, ug[0] + first, *ug[1:], sib["ug"]),
    }
