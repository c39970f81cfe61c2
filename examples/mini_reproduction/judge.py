"""Items for the evaluation, `trimix cpt`, `trimix sweep`, `trimix report`: what users would run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml
from demo_items import passages
from items import MAKERS, Item
from recipe import LANGUAGES, ExperimentConfig
from texts import Corpus

HERE = Path(__file__).resolve().parent
HELD_OUT = 8  # development documents that `trimix cpt` measures


def content(name: str) -> dict[str, Any]:
    """Reads one of the YAML files that lie here."""
    found: dict[str, Any] = yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
    return found


def rolling(documents: list[str], count: int, rng: random.Random) -> list[Item]:
    """Draws passages of running text whose bits per byte are measured.

    Returns:
        Items with `text`.
    """
    found = passages(documents)
    return [{"text": text} for text in rng.sample(found, min(count, len(found)))]


def write_items(
    recipe: ExperimentConfig, texts: dict[str, Corpus], part: str, folder: Path
) -> None:
    """Writes what all models are judged on.

    Args:
        recipe: How many items there are.
        texts: By language.
        part: "test", or "dev" for settling a recipe.
        folder: To write to; gets a folder per language.
    """
    for language in LANGUAGES:
        documents = getattr(texts[language], part)
        (folder / language).mkdir()
        for task, count in recipe.items.items():
            rng = random.Random(f"{language} {task}")
            made = MAKERS.get(task, rolling)(documents, count, rng)
            lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in made]
            (folder / language / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_texts(texts: dict[str, Corpus], folder: Path) -> None:
    """Writes what `trimix cpt` reads: a document per line."""
    for name, corpus in texts.items():
        # A few development documents are enough to choose a checkpoint, and are measured often.
        for part, documents in (("cpt", corpus.cpt), ("dev", corpus.dev[:HELD_OUT])):
            text = "".join(f"{document}\n" for document in documents)
            (folder / f"{name}_{part}.txt").write_text(text, encoding="utf-8")


def cpt_config(recipe: ExperimentConfig, language: str) -> dict[str, Any]:
    """What `trimix cpt` is told for a language, paths and seed apart."""
    return {**content("cpt.yaml"), **recipe.cpt[language]}


def adapt(recipe: ExperimentConfig, language: str, out: Path, seed: int, folder: Path) -> None:
    """Trains a small_cpt with `trimix cpt`.

    Args:
        recipe: What is special to the language.
        language: bo or ug.
        out: Folder of the whole experiment: holds the texts and the seed's small_base.
        seed: Of the whole experiment.
        folder: To write to.
    """
    from trimix_lm_eval.training.cpt import train

    train(
        {
            **cpt_config(recipe, language),
            "base": str(out / f"seed{seed}" / "small_base"),
            "output": str(folder),
            "text": str(out / "texts" / f"{language}_cpt.txt"),
            "english": str(out / "texts" / "en_cpt.txt"),
            "held_out": str(out / "texts" / f"{language}_dev.txt"),
            "seed": seed,
        }
    )


def sweep(models: Path, items: Path, folder: Path) -> None:
    """Judges a seed's models under all points and policies.

    Args:
        models: Holds large_ins, small_base and small_cpt_*.
        items: The folder that `write_items` wrote.
        folder: Of the results.
    """
    from trimix_lm_eval import sweep as sweeps

    config = content("sweep.yaml")
    config["model_args"] |= {
        "pretrained": str(models / "large_ins"),
        "small_cpt": str(models / "small_cpt_{language}"),
        "small_base": str(models / "small_base"),
    }
    config |= {
        "include_path": str(HERE / "tasks"),
        "metadata": {"items": str(items)},
        "output_path": str(folder),
    }
    sweeps.sweep(config)


def report(results: list[Path], folder: Path) -> None:
    """Writes the page over all seeds."""
    from trimix_lm_eval.analysis import report as reports

    reports.write(results, folder, force=True)
