"""Data and metrics of the example's tasks; the items were made by `judge.py` of this example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets


def load(*, items: str, language: str, task: str, **_: Any) -> dict[str, datasets.Dataset]:
    """Loads the items of one task.

    Args:
        items: The folder of the example's step `items`; comes from the run's metadata.
        language: en, bo or ug.
        task: Name of the kind.

    Returns:
        The split "test", and with what exemplars are taken from the split "dev".
    """

    def read(path: Path) -> datasets.Dataset:
        lines = path.read_text(encoding="utf-8").splitlines()
        return datasets.Dataset.from_list([json.loads(line) for line in lines])

    folder = Path(items) / language
    exemplars = folder / f"{task}_exemplars.jsonl"
    found = {"test": read(folder / f"{task}.jsonl")}
    return {**found, "dev": read(exemplars)} if exemplars.exists() else found


def as_many_words(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Compares the answer with as many words of what was written as the answer has.

    So no method is judged by where it stops.
    """
    written = " ".join(results[0].split()[: len(doc["answer"].split())])
    return {"exact_match": float(written == doc["answer"])}
