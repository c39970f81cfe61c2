"""The list of benchmarks and the table of languages have all that the package has."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from trimix_lm_eval.tasklib import flores, languages
from trimix_lm_eval.tasklib.benchmarks import BENCHMARKS, loader_of
from trimix_lm_eval.tasklib.catalog import shipped
from trimix_lm_eval.utils.paths import tasks_dir

HERE = Path(languages.__file__).parent
LOADERS = [path.stem for path in HERE.glob("*.py") if "\ndef documents(" in path.read_text("utf-8")]


def test_every_loader_is_listed_once():
    listed = [entry.loader.__name__.rpartition(".")[2] for entry in BENCHMARKS]
    assert len(LOADERS) >= 3 and sorted(listed) == sorted(LOADERS)


@pytest.mark.parametrize("name", LOADERS)
def test_the_loader_of_a_task_is_found_by_what_its_yaml_names(name):
    module = import_module(f"trimix_lm_eval.tasklib.{name}")
    assert loader_of(f"trimix_lm_eval.tasklib.{name}.documents") is module
    assert loader_of(f"trimix_lm_eval.tasklib.{name}.load") is None


def test_every_template_is_there_and_names_its_loader():
    for entry in BENCHMARKS:
        for variant in entry.variants:
            first = (tasks_dir() / variant.templates[0]).read_text(encoding="utf-8")
            assert f"custom_dataset: !function {entry.loader.__name__}.documents\n" in first
            assert all((tasks_dir() / name).is_file() for name in variant.templates)


def test_every_task_of_an_entry_ships_with_its_language():
    for entry in BENCHMARKS:
        assert len(list(entry.each())) >= len(entry.languages) * len(entry.variants)
        for variant, language in entry.each():
            ending = variant.name.format(language=language)
            config = shipped()[f"trimix_{entry.name}_{language}{ending}"]
            assert config["dataset_kwargs"]["select"]["language"] == language
            assert config["tag"] == f"trimix_{entry.name}{variant.tag}"


def test_further_languages_have_one_task_of_each_benchmark_that_has_them():
    """Apart from the others: what tags and groups had before they have no more of."""
    assert not set(languages.FURTHER) & {one.flores for one in languages.LANGUAGES}
    assert sorted(set(languages.FURTHER)) == list(languages.FURTHER)
    for code in languages.FURTHER:
        known = flores.known()[code]
        wanted = {f"trimix_{name}_{code}_ll" for name in known.benchmarks}
        found = {name: config for name, config in shipped().items() if f"_{code}" in name}
        assert set(found) == wanted and languages.name_of(code) == known.name
        assert {c["tag"] for c in found.values()} == {
            f"trimix_{name}_further_ll" for name in known.benchmarks
        }
    for name in ("sib200", "belebele"):
        tagged = [c for c in shipped().values() if c.get("tag") == f"trimix_{name}_ll"]
        assert len(tagged) == len(languages.of_benchmark(name))
    grouped = {str(member) for c in shipped().values() if "group" in c for member in c["task"]}
    assert not [member for member in grouped if any(code in member for code in languages.FURTHER)]


def test_a_language_has_the_benchmarks_that_its_line_says():
    names = {entry.name for entry in BENCHMARKS}
    for language in languages.LANGUAGES:
        assert set(language.benchmarks) <= names
        if language.flores:
            assert set(language.benchmarks) <= set(flores.known()[language.flores].benchmarks)
    for name in ("sib200", "belebele"):
        (entry,) = [entry for entry in BENCHMARKS if entry.name == name]
        wanted = {one.flores for one in languages.LANGUAGES if name in one.benchmarks}
        assert set(entry.languages) == wanted
