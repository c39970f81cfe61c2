"""What answers come to that take no model: a task in which these score well proves nothing.

* of given answers: chance, the label that is right most often, the longest, and the shortest;
* of written ones: what the prompt begins or ends with, and the answer that is right most often.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import judge
from problems import Problem


def chosen(items: list[Problem]) -> dict[str, float]:
    """Accuracies from 0 to 1 of answers that are chosen without reading."""
    pickers: dict[str, Callable[[Problem], int]] = {
        "longest": lambda item: _first(item, max(map(len, item["choices"]))),
        "shortest": lambda item: _first(item, min(map(len, item["choices"]))),
    }
    labels = Counter(item["label"] for item in items)
    return {
        "chance": sum(1 / len(item["choices"]) for item in items) / len(items),
        "usual label": labels.most_common(1)[0][1] / len(items),
        **{
            name: sum(pick(item) == item["label"] for item in items) / len(items)
            for name, pick in pickers.items()
        },
    }


def _first(item: Problem, length: int) -> int:
    """The first answer of a length."""
    return next(i for i, text in enumerate(item["choices"]) if len(text) == length)


def written(items: list[Problem]) -> dict[str, list[str]]:
    """Answers that are written without reading, one for each item."""
    usual = Counter(item["answer"] for item in items).most_common(1)[0][0]
    found: dict[str, list[str]] = {"beginning": [], "end": [], "usual answer": []}
    for item in items:
        words, many = item["prompt"].split(), len(item["answer"].split())
        found["beginning"].append(" ".join(words[1 : 1 + many]))  # the first word is the wording's
        found["end"].append(" ".join(words[-many:]))
        found["usual answer"].append(usual)
    return found


def scores(items: Path, language: str) -> dict[str, dict[str, float]]:
    """By task, what each of these answers scores.

    Args:
        items: The folder that `judge.write_items` wrote.
        language: One of its folders.

    Returns:
        Percentages of right answers.
    """
    found: dict[str, dict[str, float]] = {}
    for kind in judge.CHOSEN:
        rows = _read(items / language / f"{kind}.jsonl")
        found[f"{kind}_ll"] = {name: 100 * value for name, value in chosen(rows).items()}
        if kind in judge.WRITTEN:
            right = [row["answer"] for row in rows]
            found[kind] = {
                name: 100 * sum(map(str.__eq__, right, answers)) / len(rows)
                for name, answers in written(rows).items()
            }
    return found


def _read(path: Path) -> list[Problem]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
