"""Data and metrics of the example's tasks; the items were made by `items.py` of this example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
from sacrebleu.metrics import CHRF


def load(*, items: str, language: str, task: str, **_: Any) -> dict[str, datasets.Dataset]:
    """Loads the items of one task.

    Args:
        items: The folder of the example's step `items`; comes from the run's metadata.
        language: bo or ug.
        task: Name of the file.

    Returns:
        The split "test".
    """
    lines = (Path(items) / language / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


def as_many_words(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Pairs the answer with as many words of what was written as the answer has.

    They are always equally many, so no method is judged by where it stops.
    """
    written = " ".join(results[0].split()[: len(doc["answer"].split())])
    return {"chrf++": (doc["answer"], written), "exact": float(written == doc["answer"])}


def corpus_chrf_pp(items: list[tuple[str, str]]) -> float:
    """Corpus chrF++ as in the paper: word order 2, lower-cased; 0 to 100."""
    references, written = zip(*items, strict=True)
    return float(CHRF(word_order=2, lowercase=True).corpus_score(written, [references]).score)
