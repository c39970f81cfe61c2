"""The list of benchmarks: which loader reads each, and which tasks are made of it.

A benchmark is a loader (a module beside this one), a template with its prompt
(``tasks/<name>/_<name>``), and its entry in `BENCHMARKS`. From the list come the task files that
``python tasks/generate.py`` writes, what ``trimix tasks`` and ``trimix check`` say of the data, and
the tasks that ``trimix new-language`` writes. docs/add_a_benchmark.md goes through an example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from trimix_lm_eval.tasklib import belebele, languages, milic_eval, places, rouge, sib200


class Loader(Protocol):
    """What the module of a loader has, beside the function `documents` that the template names."""

    __name__: str
    BENCHMARK: places.Benchmark

    def files(self, *args: Any, **select: Any) -> list[places.File]:
        """The files that `documents` reads for a task, from the task's `select`."""


#: What every task tells its loader.
LANGUAGE: Mapping[str, Any] = {"language": "{language}"}


class Variant(NamedTuple):
    """One task of a benchmark in every language.

    In all texts ``{language}`` stands for the code of the language.

    Attributes:
        templates: Files that the task includes, relative to ``tasks/``; later ones win.
        name: What follows the language in the task's name.
        tag: What follows the benchmark in the tag that has the task in all languages.
        select: Arguments of the loader that make the task what it is.
    """

    templates: tuple[str, ...]
    name: str = ""
    tag: str = ""
    select: Mapping[str, Any] = LANGUAGE


class Tasks(NamedTuple):
    """The entry of a benchmark: tasks ``trimix_<name>_<language><variant>``.

    Attributes:
        name: In the names of tasks and tags.
        loader: The module that reads its files.
        languages: Codes as the loader takes them.
        variants: The tasks in each language.
        folder: Of the task files, relative to ``tasks/``; empty for `name`.
        further: Codes of languages that have the variant ``_ll`` alone, under a tag of its own.
    """

    name: str
    loader: Loader
    languages: tuple[str, ...]
    variants: tuple[Variant, ...]
    folder: str = ""
    further: tuple[str, ...] = ()

    def each(self) -> Iterator[tuple[Variant, str]]:
        """The tasks: a variant, and the code of a language."""
        for language in self.languages:
            for variant in self.variants:
                yield variant, language
        for variant in self.variants:
            if variant.name == "_ll":
                apart = variant._replace(tag=f"_further{variant.tag}")
                yield from ((apart, language) for language in self.further)


def _choice(variant: Variant, likeliest: str) -> tuple[Variant, Variant]:
    """A task in which the model writes its choice, and the same by log-likelihood."""
    templates, name, tag, select = variant
    return variant, Variant((*templates, likeliest), f"{name}_ll", f"{tag}_ll", select)


#: Tasks of MiLiC-Eval with a choice, and the template that makes log-likelihoods of it.
_CHOICES = {
    "reading_comprehension": "_letters_ll",
    "response_selection": "_letters_ll",
    "text_classification": "_labels_ll",
    "vocabulary": "_letters_ll",
    "text_classification_sentence": "_labels_ll",
}
#: Its translations, and what they are called in the names of tasks.
_TRANSLATIONS = {
    "translation_dialogue": "translation",
    "translation_article": "translation_article",
}


def _milic_eval() -> Iterator[Variant]:
    """The tasks of MiLiC-Eval, with English and with Chinese prompts."""
    for prompt, suffix in (("en", ""), ("zh", "_zh")):
        for task in (*_CHOICES, "title_generation", "math", *_TRANSLATIONS):
            templates = (f"milic_eval/_{task}_{prompt}",)
            select = {"task": task, **LANGUAGE, "prompt": prompt}
            name = f"_{_TRANSLATIONS.get(task, task)}"
            if task in _TRANSLATIONS:
                for source, target in (("{language}", prompt), (prompt, "{language}")):
                    both = {**select, "source": source, "target": target}
                    yield Variant(templates, f"{name}_{source}_{target}", f"{name}{suffix}", both)
                continue
            variant = Variant(templates, f"{name}{suffix}", f"{name}{suffix}", select)
            yield from _choice(variant, _CHOICES[task]) if task in _CHOICES else (variant,)


def _belebele() -> Iterator[Variant]:
    """Zero-shot on all questions, and with five of them set aside as exemplars."""
    yield from _choice(Variant(("belebele/_belebele",)), "_letters_ll")
    five = Variant(
        ("belebele/_belebele", "belebele/_five_shot"),
        "_5shot",
        "_5shot",
        {**LANGUAGE, "held_out": 5},
    )
    yield from _choice(five, "_letters_ll")


BENCHMARKS: tuple[Tasks, ...] = (
    Tasks(
        "milic",
        milic_eval,
        languages.of_benchmark("milic_eval"),
        tuple(_milic_eval()),
        "milic_eval/{language}",
    ),
    Tasks(
        "sib200",
        sib200,
        languages.of_benchmark("sib200"),
        _choice(Variant(("sib200/_sib200",)), "_labels_ll"),
        further=languages.further("sib200"),
    ),
    Tasks(
        "belebele",
        belebele,
        languages.of_benchmark("belebele"),
        tuple(_belebele()),
        further=languages.further("belebele"),
    ),
)


def loader_of(custom_dataset: str) -> Loader | None:
    """The loader that a task's YAML names as its `custom_dataset`; None if it is none of ours."""
    for one in BENCHMARKS:
        if custom_dataset == f"{one.loader.__name__}.documents":
            return one.loader
    return None


def reach(config: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Say where the data of a task is, without downloading it.

    Args:
        config: The task's YAML, as `catalog.read_all` gives it.
        options: What ``--metadata`` holds, e.g. `data_dir`.

    Returns:
        ``Hub``, ``cache`` (of the Hub, which does not answer), ``folder``, ``zip``, or ``shipped``.

    Raises:
        TrimixError: It cannot be had; the message says why and what to do.
    """
    loader = loader_of(str(config.get("custom_dataset")))
    if loader is None:
        return "shipped"
    select, wanted = config["dataset_kwargs"]["select"], places.options(options)
    if select.get("task") == "title_generation":
        rouge.RougeTokenizer()  # raises an error if what it needs is not installed
    place = places.place_of(loader.BENCHMARK, **wanted)
    files = loader.files(**{**wanted, **select})
    return places.reach(loader.BENCHMARK, files, place)
