"""The files of a new language, from templates; they run as they are, from any folder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trimix_lm_eval.loading.settings import DEMO
from trimix_lm_eval.tasklib import catalog
from trimix_lm_eval.tasklib.benchmarks import BENCHMARKS, Variant
from trimix_lm_eval.tasklib.flores import Language
from trimix_lm_eval.training.new_language.recipe import Suited
from trimix_lm_eval.utils import templates
from trimix_lm_eval.utils.paths import tasks_dir

_TEMPLATES = Path(__file__).with_name("templates")


class Facts(NamedTuple):
    """What the files are made from: paths and models as from everywhere, and the data's sizes.

    ``slug`` is the code as part of names of tasks; ``test`` is how many documents are kept for
    testing, drawn by ``seed``; ``tokens`` are those of the text, ``parameters`` of the base.
    """

    language: Language
    slug: str
    folder: Path
    text: list[str]
    text_field: str
    english: list[str]
    license: str
    base: str
    large: str
    suited: Suited
    tokens: int
    parameters: int | None
    test: int
    seed: int


def files(facts: Facts) -> dict[str, str]:
    """The content of all files but the held-out text, by path in the folder."""
    rolling = f"trimix_{facts.slug}_rolling"
    own, tasks = _benchmarks(facts)
    made = {
        "cpt.yaml": _render("cpt.yaml.j2", facts),
        "model.yaml": _render("model.yaml.j2", facts, tasks=[rolling], benchmarks=tasks),
        "sweep.yaml": _render("sweep.yaml.j2", facts, tasks=[rolling]),
        f"tasks/{rolling}.yaml": _render("rolling.yaml.j2", facts, task=rolling),
    }
    if tasks:
        made["benchmarks.yaml"] = _render("benchmarks.yaml.j2", facts, tasks=tasks)
    return {**made, **own}


def _benchmarks(facts: Facts) -> tuple[dict[str, str], list[str]]:
    """Task files of the benchmarks that have the language, and the names of those tasks."""
    made, names = {}, []
    shipped = catalog.shipped()
    for benchmark in facts.language.benchmarks:
        for variant in _main_variants(benchmark):
            name = f"trimix_{benchmark}_{facts.slug}{variant.name}"
            names.append(name)
            if name not in shipped:
                includes = [str(tasks_dir() / template) for template in variant.templates]
                made[f"tasks/{name}.yaml"] = _render(
                    "benchmark.yaml.j2", facts, task=name, includes=includes
                )
    return made, names


def _main_variants(benchmark: str) -> Iterator[Variant]:
    """The task that a benchmark is known for, and the same by log-likelihood."""
    for entry in BENCHMARKS:
        if entry.name == benchmark:
            yield from (one for one in entry.variants if one.name in ("", "_ll"))


def _render(template: str, facts: Facts, **more: Any) -> str:
    given = {**facts._asdict(), "demo": facts.base == DEMO, **more}
    filters = {"yaml": _scalar, "comment": _comment}
    return templates.render(_TEMPLATES / template, filters, **given)


def _scalar(value: Any) -> str:
    """A value as YAML reads it back: a text in quotes, on one line, whatever is in it."""
    import yaml

    text: str = yaml.safe_dump(str(value), default_style='"', allow_unicode=True, width=math.inf)
    return text.rstrip("\n")


def _comment(value: Any) -> str:
    """A text as part of a comment, which no line break in it can end."""
    return _scalar(value)[1:-1]
