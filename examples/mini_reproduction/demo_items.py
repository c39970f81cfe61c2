"""The items of `trimix_demo`, the three tasks on Tibetan folk tales that ship in the package."""

from __future__ import annotations

import json
import random
from pathlib import Path

N_ROLLING, N_CHOICE, N_GENERATE = 40, 390, 48  # items per task
# Lengths in characters; the tokenizer makes a token of about two characters of Tibetan.
PASSAGE = 600
CHOICE_CONTEXT, CHOICE_ANSWER = 300, 50
GENERATE_CONTEXT, GENERATE_REFERENCE = 400, 110


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
