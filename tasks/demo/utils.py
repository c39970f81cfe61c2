"""Data and metric of the `trimix_demo` tasks.

The files lie beside this module, so the tasks work wherever the package is installed and whatever
the current folder is; lm-eval resolves relative `data_files` against the current folder instead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
from sacrebleu.metrics import CHRF

DATA = Path(__file__).resolve().parent / "data"


def _load(name: str) -> dict[str, datasets.Dataset]:
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


def load_rolling(**_: Any) -> dict[str, datasets.Dataset]:
    """Loads held-out passages; lm-eval passes the task's metadata, which is not needed.

    Returns:
        The split "test" with the column `text`.
    """
    return _load("rolling")


def load_choice(**_: Any) -> dict[str, datasets.Dataset]:
    """Loads the questions which of four continuations is the true one.

    Returns:
        The split "test" with the columns `context`, `choices` (4 strings) and `label` (0 to 3).
    """
    return _load("choice")


def load_generate(**_: Any) -> dict[str, datasets.Dataset]:
    """Loads passages to be continued.

    Returns:
        The split "test" with the columns `context` and `reference`.
    """
    return _load("generate")


def process_generate(doc: dict[str, Any], results: list[str]) -> dict[str, tuple[str, str]]:
    """Pairs a generated continuation with the true one.

    Args:
        doc: An item of `load_generate`.
        results: The one generated text.

    Returns:
        What `corpus_chrf_pp` collects.
    """
    return {"chrf++": (doc["reference"], results[0].strip())}


def corpus_chrf_pp(items: list[tuple[str, str]]) -> float:
    """Computes corpus chrF++ as the paper does: word order 2, lower-cased.

    lm-eval's own `chrf` counts characters only (word order 0) and keeps the case.

    Args:
        items: Pairs of reference and hypothesis.

    Returns:
        A score from 0 to 100.
    """
    references, hypotheses = zip(*items, strict=True)
    return CHRF(word_order=2, lowercase=True).corpus_score(hypotheses, [references]).score
