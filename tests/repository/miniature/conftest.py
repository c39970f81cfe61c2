"""The miniature of the paper: its modules, made-up texts, and a tokenizer of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.examples import importable, sentences
from tests.support.running import ROOT

HERE = ROOT / "examples" / "miniature"


@pytest.fixture(scope="module", autouse=True)
def modules():
    with importable(HERE):
        yield


def write_texts(folder: Path) -> Path:
    rng = random.Random(0)

    def write(name: str, lines: list[str]) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    write("kjv.txt", [f"{line}." for line in sentences("en", 3000, 9, rng)])
    clauses = sentences("bo", 220 * 20, 7, rng)
    write("bo_nanhai.txt", [" ། ".join(clauses[i : i + 20]) for i in range(0, len(clauses), 20)])
    write("ug_udt_train.txt", [f"{line}." for line in sentences("ug", 400, 9, rng)])
    write("ug_udt_test.txt", [f"{line}." for line in sentences("ug", 300, 9, rng)])
    codes = {"en": "eng_Latn", "bo": "bod_Tibt", "ug": "uig_Arab"}
    for language, code in codes.items():
        lines = sentences(language, 1004, 9, rng)
        topics = [f"{i}\t{('sports', 'travel')[i % 2]}\t{line}." for i, line in enumerate(lines)]
        for part, some in (
            ("train", topics[:701]),
            ("dev", topics[701:800]),
            ("test", topics[800:]),
        ):
            write(f"sib200/{code}/{part}.tsv", ["index_id\tcategory\ttext", *some])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def corpora(folder):
    import texts

    return texts.load(folder)


@pytest.fixture(scope="module")
def words(corpora):
    import curriculum
    import tokenizer

    documents = curriculum.tasks(corpora["en"], 1500, random.Random(9))
    return tokenizer.train(corpora, documents, 700)
