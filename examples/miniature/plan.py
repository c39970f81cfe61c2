"""The experiment as a list of steps: which folder comes from which, and by what recipe."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import claims_page
import curriculum
import judge
import models
import texts
import tokenizer as tokenizers
from recipe import LANGUAGES, PAIRS, ExperimentConfig
from steps import Step

Load = Callable[[], dict[str, texts.Corpus]]


def steps(
    recipe: ExperimentConfig, sources: Path, out: Path, seeds: list[int], part: str
) -> list[Step]:
    """Lists the whole experiment.

    Args:
        recipe: Its sizes and mixtures.
        sources: Folder of the texts.
        out: Folder of the steps' folders.
        seeds: Each trains models of its own.
        part: The text that models are judged on, "test" or "dev".

    Returns:
        Steps in an order in which they can be done.
    """
    load: Load = functools.cache(lambda: texts.load(sources))
    files = {name: _sha256(sources / name) for name in texts.FILES}
    documents = {**files, "documents": recipe.documents, "passes": recipe.passes}
    found = [
        Step("texts", (), documents, lambda folder: judge.write_texts(recipe, load(), folder)),
        Step(
            "tokenizer",
            ("texts",),
            {"vocabulary": recipe.vocabulary},
            lambda folder: tokenizer(recipe, load(), folder),
        ),
        Step(
            f"items_{part}",
            ("texts",),
            {"items": recipe.items},
            lambda folder: judge.write_items(recipe, load(), part, folder),
        ),
    ]
    for seed in seeds:
        found += trained(recipe, load, out, seed)
        found += [evaluated(out, seed, pair, part) for pair in PAIRS]
    results = tuple(step.name for step in found if "results" in step.name)
    places = [out / name for name in results]
    return [
        *found,
        probed(load, out, seeds, part),
        Step(f"report_{part}", results, {}, functools.partial(judge.report, places), summary=True),
        Step(
            f"claims_{part}",
            results,
            {},
            functools.partial(claims_page.write, out, part),
            summary=True,
        ),
    ]


def tokenizer(recipe: ExperimentConfig, read: dict[str, texts.Corpus], folder: Path) -> None:
    """Trains the tokenizer of all models."""
    documents = curriculum.tasks(read["en"], recipe.documents // 4, random.Random("tokenizer"))
    tokenizers.train(read, documents, recipe.vocabulary).save_pretrained(folder)


def trained(recipe: ExperimentConfig, load: Load, out: Path, seed: int) -> list[Step]:
    """The steps that train a seed's models; each goes on where it was ended."""
    here = f"seed{seed}"

    def base(role: str) -> Step:
        stage = {"shape": recipe.shapes[role.split("_")[0]], "stage": getattr(recipe, role)}
        return Step(
            f"{here}/{role}",
            ("tokenizer",),
            stage,
            lambda folder: models.pretrain(role, recipe, load(), out / "tokenizer", seed, folder),
            resumes=True,
        )

    def adapted(language: str) -> Step:
        return Step(
            f"{here}/small_cpt_{language}",
            ("texts", f"{here}/small_base"),
            judge.cpt_config(recipe, language),
            lambda folder: judge.adapt(recipe, language, out, seed, folder),
            resumes=True,
        )

    def tuned(size: str) -> Step:
        role, of = f"{size}_ins", f"{here}/{size}_base"
        return Step(
            f"{here}/{role}",
            (of,),
            {"stage": getattr(recipe, role)},
            lambda folder: models.tune(role, recipe, load(), out / of, seed, folder),
            resumes=True,
        )

    both = [step for size in PAIRS for step in (base(f"{size}_base"), tuned(size))]
    return [base("small_base"), *both, *map(adapted, LANGUAGES)]


def evaluated(out: Path, seed: int, pair: str, part: str) -> Step:
    """The step that sweeps a seed's small models with one of its larger ones."""
    roles = (f"{pair}_ins", "small_base", *(f"small_cpt_{language}" for language in LANGUAGES))
    return Step(
        f"seed{seed}/results_{part}_{pair}",
        (f"items_{part}", *(f"seed{seed}/{role}" for role in roles)),
        judge.content("sweep.yaml"),
        functools.partial(judge.sweep, out / f"seed{seed}", pair, out / f"items_{part}"),
        resumes=True,
    )


def probed(load: Load, out: Path, seeds: list[int], part: str) -> Step:
    """The step that asks the vectors of all seeds' models for the topics that none can name."""
    roles = ("small_base", *(f"small_cpt_{language}" for language in LANGUAGES), "large_ins")
    places = {role: [out / f"seed{seed}" / role for seed in seeds] for role in roles}

    def write(folder: Path) -> None:
        import probe

        probe.write(places, load(), part, folder)

    needs = tuple(str(place.relative_to(out)) for some in places.values() for place in some)
    return Step(f"probe_{part}", needs, {}, write, summary=True)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
