"""Texts of the embedded demo: reading, the held-out split, and the items of `trimix_demo`.

Invariant: the held-out text is the tail of each corpus and nothing is fitted on it, neither the
tokenizer nor a model. A training document that shares a long run of characters with it is dropped.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

HELD_OUT_TIBETAN = 60  # last documents (lines) of the Tibetan file: folk tales
HELD_OUT_ENGLISH = 1600  # last lines (verses) of the English file
OVERLAP = 40  # characters: a training document sharing such a run with held-out text is dropped
N_ROLLING, N_CHOICE, N_GENERATE = 40, 390, 48  # items per task
# Lengths in characters; the demo's tokenizer makes a token of about 2.5 characters of Tibetan.
PASSAGE = 600
CHOICE_CONTEXT, CHOICE_ANSWER = 300, 50
GENERATE_CONTEXT, GENERATE_REFERENCE = 400, 110


class Texts(NamedTuple):
    """Documents of both languages, split.

    Attributes:
        tibetan: Training documents in Tibetan.
        english: Training documents in English.
        tibetan_held_out: Documents no model has seen, in Tibetan.
        english_held_out: Documents no model has seen, in English.
    """

    tibetan: list[str]
    english: list[str]
    tibetan_held_out: list[str]
    english_held_out: list[str]


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

    Blanks and tseks are ignored, because the corpus separates words in two ways.

    Args:
        train: Candidate training documents.
        held_out: Documents to stay unseen.
        run: Length, in characters, of a shared run that counts as a quotation.

    Returns:
        The documents of `train` that share no sampled run with `held_out`.
    """

    def squeeze(text: str) -> str:
        return text.replace(" ", "").replace("་", "")

    seen = set()
    for text in map(squeeze, held_out):
        seen.update(text[i : i + run] for i in range(0, len(text) - run, run // 2))

    def quotes(text: str) -> bool:
        return any(text[i : i + run] in seen for i in range(len(text) - run))

    return [document for document in train if not quotes(squeeze(document))]


def load_texts(tibetan: Path, english: Path) -> Texts:
    """Reads both files and splits them.

    Args:
        tibetan: One document per line.
        english: One verse per line.

    Returns:
        The split texts; English verses are joined into documents of 20 lines.
    """
    bo, en = read_lines(tibetan), read_lines(english)
    bo_held_out = bo[-HELD_OUT_TIBETAN:]
    en_documents = [
        ["\n".join(part[i : i + 20]) for i in range(0, len(part), 20)]
        for part in (en[:-HELD_OUT_ENGLISH], en[-HELD_OUT_ENGLISH:])
    ]
    return Texts(
        tibetan=without_overlap(bo[:-HELD_OUT_TIBETAN], bo_held_out),
        english=en_documents[0],
        tibetan_held_out=bo_held_out,
        english_held_out=en_documents[1],
    )


def cut(text: str, size: int) -> tuple[str, str]:
    """Splits text at the first word boundary at or after `size` characters.

    Args:
        text: Words separated by single spaces.
        size: Characters.

    Returns:
        Head and tail, without the space between them; the tail is "" if the text is too short.
    """
    end = text.find(" ", size)
    return (text, "") if end < 0 else (text[:end], text[end + 1 :])


def passages(documents: list[str], size: int = PASSAGE) -> list[str]:
    """Cuts documents into disjoint passages; what is left at their ends is dropped.

    Args:
        documents: Held-out documents.
        size: Characters per passage.

    Returns:
        Passages in the order of the text.
    """
    found = []
    for rest in documents:
        head, rest = cut(rest, size)
        while rest:
            found.append(head)
            head, rest = cut(rest, size)
    return found


def with_swaps(text: str, count: int, rng: random.Random) -> list[str]:
    """Exchanges two words of a text, in several ways.

    Args:
        text: Words separated by spaces.
        count: Variants wanted.
        rng: Picks the words.

    Returns:
        Different texts, none of them the original.
    """
    found: list[str] = []
    while len(found) < count:
        words = text.split()
        i, j = rng.sample(range(len(words)), 2)
        words[i], words[j] = words[j], words[i]
        variant = " ".join(words)
        if variant != text and variant not in found:
            found.append(variant)
    return found


def choice_items(pool: list[str], rng: random.Random) -> list[dict]:
    """Makes questions: which of four continuations follows the context?

    In each wrong one two words of the true one have changed places. Text from elsewhere would not
    do: how likely a passage is by itself varies far more than what the context adds to it, and the
    demo's models stay at chance.

    Args:
        pool: One passage per question.
        rng: Picks the words and shuffles the options.

    Returns:
        Items with `context`, `choices` (4 strings) and `label` (index of the true one).
    """
    items = []
    for passage in pool:
        context, tail = cut(passage, CHOICE_CONTEXT)
        answer = cut(tail, CHOICE_ANSWER)[0]
        choices = [answer, *with_swaps(answer, 3, rng)]
        rng.shuffle(choices)
        items.append({"context": context, "choices": choices, "label": choices.index(answer)})
    return items


def generate_items(pool: list[str]) -> list[dict]:
    """Makes passages to be continued.

    Args:
        pool: One passage per item.

    Returns:
        Items with `context` and `reference`, the text that follows it.
    """
    items = []
    for passage in pool:
        context, tail = cut(passage, GENERATE_CONTEXT)
        items.append({"context": context, "reference": cut(tail, GENERATE_REFERENCE)[0]})
    return items


def write_tasks(held_out: list[str], out: Path, seed: int) -> None:
    """Writes the JSONL files of `trimix_demo`; no passage serves two tasks.

    Args:
        held_out: Documents that no model has seen.
        out: Folder for rolling.jsonl, choice.jsonl and generate.jsonl.
        seed: Of the choice of passages and of the order of the options.
    """
    rng = random.Random(seed)
    pool = rng.sample(passages(held_out), N_ROLLING + N_CHOICE + N_GENERATE)
    rolling, rest = pool[:N_ROLLING], pool[N_ROLLING:]
    tables = {
        "rolling": [{"text": text} for text in rolling],
        "choice": choice_items(rest[:N_CHOICE], rng),
        "generate": generate_items(rest[N_CHOICE:]),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, items in tables.items():
        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items]
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
