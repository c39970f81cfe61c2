"""MiLiC-Eval (Zhang et al. 2025, https://arxiv.org/abs/2503.01150): files -> lm-eval documents.

Read from the Hub (gated), from a folder with the Hub's files, or from the archive that TriMix's
authors publish, unpacked or not. The two releases name some folders differently. No row of it is in
this package: its authors gate it so that it stays out of training data.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from trimix_lm_eval.tasklib import places, rouge, rows
from trimix_lm_eval.tasklib.languages import name_of
from trimix_lm_eval.tasklib.rows import ID, LETTER, NUMBER, PAIR, TEXT, TEXTS, Kind, Row, arrange
from trimix_lm_eval.utils.errors import TrimixError, unknown

if TYPE_CHECKING:
    from datasets import Dataset

#: The files have had one content so far, as far as is known; no commit could be confirmed.
BENCHMARK = places.Benchmark("milic_eval", "pkupie/milic-eval", "main")

LANGUAGES = ("bo", "ug", "kk", "mn")
EXEMPLARS = ("train_1", "train_2", "train_3")
_TITLES = 200  # of the 900 titles, TriMix's authors use these many

#: Labels of the passages in the order in which prompts list them. The authors list them in the
#: order of a Python set, which differs from run to run; here the order is fixed.
PASSAGE_LABELS = {
    "bo": ("education", "economy", "law", "travel"),
    "ug": ("travel", "livelihood", "health", "sports"),
    "kk": ("economy", "culture", "politics", "geography"),
    "mn": ("education", "health", "politics", "technology"),
}

Make = Callable[[Row, str, str], Row]


class TaskFiles(NamedTuple):
    """What the files of one task look like, the same in all languages.

    Attributes:
        hub: The folder on the Hub.
        exemplars: Rows in each of train_1, train_2, train_3.
        test: Rows in the test file.
        fields: What each column must be.
        zip: The folder in the authors' archive, if it is called otherwise.
        per_label: Exemplars of each label in a prompt, if there are labels.
    """

    hub: str
    exemplars: int
    test: int
    fields: dict[str, Kind]
    zip: str | None = None
    per_label: int = 1


_DIALOGUE = {"id": ID, "context": TEXTS, "options": TEXTS, "answer": LETTER}
_LABELLED = {"id": ID, "text": TEXT, "label": PAIR}

TASKS = {
    "response_selection": TaskFiles("response_selection", 20, 407, _DIALOGUE),
    "reading_comprehension": TaskFiles(
        "reading_comprehension", 10, 200, {**_DIALOGUE, "question": TEXT}
    ),
    "text_classification": TaskFiles(
        "text_classification_passage", 16, 504, _LABELLED, "text_classification", per_label=3
    ),
    "title_generation": TaskFiles(
        "title_generation", 20, 900, {"id": ID, "title": TEXT, "content": TEXT}
    ),
    "math": TaskFiles("math", 10, 200, {"id": ID, "question": TEXT, "answer": NUMBER}),
    "translation_dialogue": TaskFiles("translation_dialogue", 20, 673, {"id": ID}),
    "translation_article": TaskFiles("translation_article", 20, 912, {"id": ID}),
    "vocabulary": TaskFiles(
        "vocabulary", 20, 900, {"id": ID, "word": TEXT, "options": TEXTS, "answer": LETTER}
    ),
    "text_classification_sentence": TaskFiles("text_classification_sentence", 10, 432, _LABELLED),
}


def documents(select: Mapping[str, Any], **given: Any) -> dict[str, Dataset]:
    """The `custom_dataset` of the YAML.

    Args:
        select: Arguments of `load` that make the task what it is. They come under a name of their
            own, for lm-eval passes the user's metadata and the model's arguments beside them.
        **given: These.
    """
    return load(**{**places.options(given), **select})


def load(
    task: str,
    language: str,
    prompt: str = "en",
    source: str | None = None,
    target: str | None = None,
    exemplars: str = "train_1",
    **options: Any,
) -> dict[str, Dataset]:
    """Load one task in one language.

    Args:
        task: A key of `TASKS`.
        language: A code of `LANGUAGES`.
        prompt: The language of the prompt, ``en`` or ``zh``: of labels, names and solutions.
        source: Code of the language to translate from, ``en`` or ``zh`` or `language`.
        target: Code of the language to translate into.
        exemplars: The file of few-shot exemplars.
        **options: Those of `places.place_of`.

    Returns:
        The splits ``test`` and ``exemplars``, the latter in the order in which it is used.

    Raises:
        TrimixError: The files cannot be had or are not as published.
    """
    import datasets

    known = TASKS[task]
    if task == "title_generation":
        rouge.RougeTokenizer()  # if what it needs is missing, say so now, not after hours
    place = places.place_of(BENCHMARK, **options)
    test_file, train_file = files(task, language, exemplars)
    test = places.fetch(BENCHMARK, test_file, place)
    train = places.fetch(BENCHMARK, train_file, place)
    fields = {**known.fields, **{code: TEXT for code in (source, target) if code}}
    drawn = task == "title_generation" and test.file.startswith("title_generation_200/")
    tested = rows.check(rows.read_json(test), test, fields, _TITLES if drawn else known.test)
    shown = rows.check(
        rows.read_json(train),
        train,
        {**fields, "cot": PAIR} if task == "math" else fields,
        known.exemplars,
    )
    if task == "title_generation" and not drawn:
        tested = draw_titles(tested, language)
    if "label" in fields:
        return _classification(task, language, prompt, tested, shown, test.where)
    make = _makers(task, source, target)
    return {
        split: datasets.Dataset.from_list([make(row, language, prompt) for row in of_split])
        for split, of_split in (("test", tested), ("exemplars", shown))
    }


def files(task: str, language: str, exemplars: str = "train_1", **_: Any) -> list[places.File]:
    """The test file of a task and its file of exemplars."""
    if exemplars not in EXEMPLARS:
        raise unknown("file of exemplars", str(exemplars), EXEMPLARS)
    known = TASKS[task]
    other = "title_generation_200" if task == "title_generation" else known.zip
    names = [f"{language}/{split}.json" for split in ("test", exemplars)]
    return [
        places.File(f"{known.hub}/{name}", (f"{other}/{name}",) if other else ()) for name in names
    ]


def draw_titles(titles: list[Row], language: str) -> list[Row]:
    """Draw the 200 titles that TriMix's authors use from the 900 of a language.

    They seed Python's generator once with 0 and draw for bo, ug, kk and mn in this order. What is
    drawn depends on how many rows there are, not on what is in them, so that the earlier
    languages need not be read.
    """
    generator = random.Random(0)
    for code in LANGUAGES:
        drawn = generator.sample(range(len(titles)), _TITLES)
        if code == language:
            return [titles[i] for i in drawn]
    raise unknown("language", language, LANGUAGES)


def _makers(task: str, source: str | None, target: str | None) -> Make:
    """The function that turns a row of a task into a document."""
    if source and target:
        return lambda row, language, prompt: {
            "id": str(row["id"]),
            "source_language": name_of(source, prompt),
            "target_language": name_of(target, prompt),
            "source": row[source],
            "target": row[target],
        }
    return {"math": _problem, "title_generation": _article}.get(task, _question)


def _head(row: Row, language: str, prompt: str) -> Row:
    """What documents of all tasks but translation begin with."""
    return {"id": str(row["id"]), "language": name_of(language, prompt)}


def _question(row: Row, language: str, prompt: str) -> Row:
    letters = ["A", "B", "C", "D", "E"][: len(row["options"])]
    if row["answer"] not in letters or not 2 <= len(row["options"]) <= 5:
        raise TrimixError(
            f"MiLiC-Eval, question {row['id']} ({language}): the answer is {row['answer']}, but "
            f"there are {len(row['options'])} options.",
            "download the data again",
        )
    kept = ("context", "question", "word", "options", "answer")
    return {
        **_head(row, language, prompt),
        **{name: row[name] for name in kept if name in row},
        "letters": letters,
        "gold": letters.index(row["answer"]),
    }


def _article(row: Row, language: str, prompt: str) -> Row:
    return {**_head(row, language, prompt), "content": row["content"], "title": row["title"]}


def _problem(row: Row, language: str, prompt: str) -> Row:
    made = {
        **_head(row, language, prompt),
        "question": row["question"],
        "answer": str(row["answer"]),
    }
    return {**made, "solution": row["cot"][prompt]} if "cot" in row else made


def _classification(
    task: str, language: str, prompt: str, test: list[Row], train: list[Row], where: str
) -> dict[str, Dataset]:
    """Documents of a classification task: the labels in one order, exemplars shuffled.

    As the authors do it: the first few exemplars of each label, all of these shuffled by a
    generator seeded with 0.
    """
    import datasets

    names: dict[str, str] = {}
    for row in [*train, *test]:
        label, name = row["label"]["en"], row["label"][prompt]
        if names.setdefault(label, name) != name:
            raise TrimixError(
                f"{where}: the label {label} is called {name} in row {row['id']} and "
                f"{names[label]} in another.",
                "name another release with data_dir or data_revision in --metadata",
            )
    labels = PASSAGE_LABELS[language] if task == "text_classification" else tuple(sorted(names))
    if set(names) != set(labels):
        raise TrimixError(
            f"{where}: its labels are {', '.join(sorted(names))}; published were "
            f"{', '.join(labels)}.",
            "name another release with data_dir or data_revision in --metadata",
        )
    shown = [names[label] for label in labels]

    def document(row: Row) -> Row:
        return {
            **_head(row, language, prompt),
            "text": row["text"],
            "labels": shown,
            "label": row["label"][prompt],
            "gold": labels.index(row["label"]["en"]),
        }

    tested, pool = ([document(row) for row in split] for split in (test, train))
    per_label = TASKS[task].per_label
    return {
        "test": datasets.Dataset.from_list(tested),
        "exemplars": datasets.Dataset.from_list(arrange(pool, shown, per_label)),
    }
