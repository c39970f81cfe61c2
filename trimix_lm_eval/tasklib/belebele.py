"""Belebele (Bandarkar et al. 2024, https://arxiv.org/abs/2308.16884): files -> lm-eval documents.

Reading comprehension over passages of FLORES-200, 900 questions and nothing else: there is no
training set. The task is therefore zero-shot; in its few-shot variant the exemplars are the first
rows with passages of their own, and no question about any of these passages is scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trimix_lm_eval.tasklib import places, rows
from trimix_lm_eval.tasklib.languages import name_of
from trimix_lm_eval.tasklib.rows import TEXT, Kind, Row

if TYPE_CHECKING:
    from datasets import Dataset

BENCHMARK = places.Benchmark(
    "belebele", "facebook/belebele", "75b399394a9803252cfec289d103de462763db7c"
)
_ANSWERS = tuple(f"mc_answer{i}" for i in range(1, 5))
_ROWS = 900
_KEY = ("flores_passage", "question", *_ANSWERS)
_FIELDS = {
    "flores_passage": TEXT,
    "question": TEXT,
    **dict.fromkeys(_ANSWERS, TEXT),
    "correct_answer_num": Kind("one of 1, 2, 3, 4", lambda v: str(v) in ("1", "2", "3", "4")),
}


def documents(select: Mapping[str, Any], **given: Any) -> dict[str, Dataset]:
    """The `custom_dataset` of the YAML; see `milic_eval.documents`."""
    return load(**{**places.options(given), **select})


def load(
    language: str, language_name: str | None = None, held_out: int = 0, **options: Any
) -> dict[str, Dataset]:
    """Load one language: the split ``test``, and ``exemplars`` if any are set aside.

    Args:
        language: A code of FLORES-200, e.g. ``ben_Beng``.
        language_name: What prompts call it, if it is not one of `languages.ENGLISH`.
        held_out: How many rows to set aside as few-shot exemplars.
        **options: Those of `places.place_of`.

    Raises:
        TrimixError: The file cannot be had or is not as published.
    """
    import datasets

    name = language_name or name_of(language)
    place = places.place_of(BENCHMARK, **options)
    content = places.fetch(BENCHMARK, files(language)[0], place)
    checked = rows.check(rows.read_jsonl(content), content, _FIELDS, _ROWS, key=_KEY)
    documents = [_document(row, number, name) for number, row in enumerate(checked)]
    if not held_out:
        return {"test": datasets.Dataset.from_list(documents)}
    shown, scored = set_aside(documents, held_out)
    return {
        "test": datasets.Dataset.from_list(scored),
        "exemplars": datasets.Dataset.from_list(shown),
    }


def files(language: str, **_: Any) -> list[places.File]:
    """The one file of a language."""
    return [places.File(f"data/{language}.jsonl", (f"{language}.jsonl",))]


def set_aside(documents: list[Row], count: int) -> tuple[list[Row], list[Row]]:
    """Divide documents into exemplars and those that are scored.

    The exemplars are the first with passages of their own; scored are all documents whose passage
    is none of theirs: most passages have two questions, and seeing a passage with one answer would
    help with the other.
    """
    first: dict[str, Row] = {}
    for document in documents:
        first.setdefault(document["context"][0], document)
    shown = list(first.values())[:count]
    passages = {document["context"][0] for document in shown}
    return shown, [doc for doc in documents if doc["context"][0] not in passages]


def _document(row: Row, number: int, language: str) -> Row:
    letters = ["A", "B", "C", "D"]
    gold = int(row["correct_answer_num"]) - 1
    return {
        "id": str(number),
        "language": language,
        "context": [row["flores_passage"]],
        "question": row["question"],
        "options": [row[name] for name in _ANSWERS],
        "letters": letters,
        "answer": letters[gold],
        "gold": gold,
    }
