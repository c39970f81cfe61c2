"""Data and metrics of the `trimix_demo` tasks.

The files lie beside this module, so the tasks work wherever the package is installed and whatever
the current folder is; lm-eval resolves relative `data_files` against the current folder instead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets

DATA = Path(__file__).resolve().parent / "data"


def load(kind: str, **_: Any) -> dict[str, datasets.Dataset]:
    """Loads the items of a task; lm-eval passes the task's metadata, too, which is not needed.

    Args:
        kind: Name of the files, such as "follow".

    Returns:
        The split "test": running text has the column `text`, questions have `prompt`, `answer`,
        `choices` and `label` (the place of the answer among them). Questions have the split "dev",
        too, of which the exemplars are.
    """
    found = {"test": _read(DATA / f"{kind}.jsonl")}
    exemplars = DATA / f"{kind}_exemplars.jsonl"
    return {**found, "dev": _read(exemplars)} if exemplars.exists() else found


def _read(path: Path) -> datasets.Dataset:
    lines = path.read_text(encoding="utf-8").splitlines()
    return datasets.Dataset.from_list([json.loads(line) for line in lines])


def process_answer(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Compares an answer with as many words of what was written as it has.

    So no method is judged by where it stops.

    Args:
        doc: A question.
        results: The one generated text.

    Returns:
        Whether all words are right.
    """
    written = " ".join(results[0].split()[: len(doc["answer"].split())])
    return {"exact_match": float(written == doc["answer"])}
