"""SIB-200 (Adelani et al. 2024, https://arxiv.org/abs/2309.07445): files -> lm-eval documents.

Topic classification of sentences from FLORES-200. Read from the Hub or from a folder with its TSV
files, laid out as on the Hub or in its authors' repository (`data/annotated/{code}/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trimix_lm_eval.tasklib import places, rows
from trimix_lm_eval.tasklib.languages import name_of
from trimix_lm_eval.tasklib.rows import TEXT, Kind, Row, arrange

if TYPE_CHECKING:
    from datasets import Dataset

BENCHMARK = places.Benchmark("sib200", "Davlan/sib200", "38977a667f6fc264d5c26ec57a01e16db040b358")

#: In the order of the `labels.txt` that comes with the data.
LABELS = (
    "science/technology",
    "travel",
    "politics",
    "sports",
    "health",
    "entertainment",
    "geography",
)
_ROWS = {"train": 701, "test": 204}
_FIELDS = {
    "index_id": TEXT,
    "category": Kind("one of the seven topics", lambda value: value in LABELS),
    "text": TEXT,
}


def documents(select: Mapping[str, Any], **given: Any) -> dict[str, Dataset]:
    """The `custom_dataset` of the YAML; see `milic_eval.documents`."""
    return load(**{**places.options(given), **select})


def load(language: str, language_name: str | None = None, **options: Any) -> dict[str, Dataset]:
    """Load one language.

    The splits are ``test`` and ``exemplars``: the training set, arranged in rounds of one sentence
    of each topic, so that the first seven show all of them. Arguments and errors are those of
    `belebele.load`.
    """
    import datasets

    name = language_name or name_of(language)
    place = places.place_of(BENCHMARK, **options)
    made = {}
    for split, file in zip(("test", "train"), files(language), strict=True):
        content = places.fetch(BENCHMARK, file, place)
        checked = rows.check(
            rows.read_tsv(content), content, _FIELDS, _ROWS[split], key=("index_id",)
        )
        made[split] = [_document(row, name) for row in checked]
    pool = arrange(made["train"], list(LABELS), per_label=1)
    return {
        "test": datasets.Dataset.from_list(made["test"]),
        "exemplars": datasets.Dataset.from_list(pool),
    }


def files(language: str, **_: Any) -> list[places.File]:
    """The test file of a language and its training file."""
    names = [f"{language}/{split}.tsv" for split in ("test", "train")]
    return [places.File(f"data/{name}", (name,)) for name in names]


def _document(row: Row, language: str) -> Row:
    return {
        "id": row["index_id"],
        "language": language,
        "text": row["text"],
        "labels": list(LABELS),
        "label": row["category"],
        "gold": LABELS.index(row["category"]),
    }
