"""Items for the evaluation, `trimix cpt`, `trimix sweep`, `trimix report`: what users would run."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import curriculum
import wording
import yaml
from problems import MAKERS, Problem, Text
from recipe import EXEMPLARS, LANGUAGES, ExperimentConfig
from texts import Corpus, Sentence

HERE = Path(__file__).resolve().parent
HELD_OUT = 8  # development documents that `trimix cpt` measures
PASSAGE = 600  # characters of running text whose bits per byte are measured
#: Kinds that are judged by the likelihood of given answers, and those that are written.
CHOSEN = ("follow", "say", "who", "gloss_to", "gloss_from", "finish", "topic")
WRITTEN = ("follow", "say", "who", "gloss_to", "gloss_from")


def content(name: str) -> dict[str, Any]:
    """Reads one of the YAML files that lie here."""
    found: dict[str, Any] = yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
    return found


def passages(documents: list[str], count: int, rng: random.Random) -> list[Problem]:
    """Draws passages of running text that share nothing.

    Returns:
        Items with `text`.
    """
    found = []
    for document in documents:
        start = 0
        while (end := document.find(" ", start + PASSAGE)) > 0:
            found.append(document[start:end])
            start = end + 1
    return [{"text": text} for text in rng.sample(found, min(count, len(found)))]


def topics(sentences: list[Sentence], count: int, rng: random.Random) -> list[Problem]:
    """Asks what sentences are about."""
    labels = sorted({one.topic for one in sentences})
    drawn = rng.sample(sentences, min(count, len(sentences)))
    return [
        {
            "passage": one.text,
            "answer": one.topic,
            "choices": labels,
            "label": labels.index(one.topic),
        }
        for one in drawn
    ]


def problems(
    kind: str, corpus: Corpus, english: Corpus, part: str, count: int, rng: random.Random
) -> list[Problem]:
    """Makes problems of a kind from development or test text, in the wording of the tests."""
    if kind == "topic":
        made = topics(corpus.topics[part], count, rng)
    else:
        text, other = (Text(getattr(one, part), rng) for one in (corpus, english))
        made = [MAKERS[kind](text, other) for _ in range(count)]
    return [_item(kind, problem) for problem in made]


def _item(kind: str, problem: Problem) -> Problem:
    prompt, _ = wording.worded(wording.TEST[kind], problem)
    return {"prompt": prompt, **{key: problem[key] for key in ("answer", "choices", "label")}}


def write_items(
    recipe: ExperimentConfig, texts: dict[str, Corpus], part: str, folder: Path
) -> None:
    """Writes what all models are judged on, and the tasks of lm-eval that read it.

    Args:
        recipe: How many items there are.
        texts: By language.
        part: "test", or "dev" for settling a recipe. Exemplars are of development text always.
        folder: To write to; gets a folder per language, and `tasks`.
    """
    for language, corpus in texts.items():
        (folder / language).mkdir()
        for kind in CHOSEN:
            rng = random.Random(f"{language} {kind}")
            mine = (kind, corpus, texts["en"])
            shown = problems(*mine, "dev", EXEMPLARS, rng)
            asked = problems(*mine, part, recipe.items["problems"], rng)
            _write(folder / language / f"{kind}_exemplars.jsonl", shown)
            _write(folder / language / f"{kind}.jsonl", asked)
        rng = random.Random(f"{language} rolling")
        running = passages(getattr(corpus, part), recipe.items["passages"], rng)
        _write(folder / language / "rolling.jsonl", running)
    write_tasks(list(texts), folder / "tasks")


def write_tasks(languages: list[str], folder: Path) -> None:
    """Writes the YAML of every task: a few lines each, over the templates that lie here."""
    folder.mkdir()
    for template in (HERE / "tasks").iterdir():
        if template.is_file():
            (folder / template.name).write_bytes(template.read_bytes())
    for language in languages:
        made = [(f"{kind}_ll", kind, "_ll") for kind in CHOSEN]
        made += [(kind, kind, "_write") for kind in WRITTEN]
        made.append(("rolling", "rolling", "_rolling"))
        for name, kind, template in made:
            task = {
                "include": template,
                "task": f"mini_{language}_{name}",
                "dataset_kwargs": {"language": language, "task": kind},
            }
            path = folder / f"mini_{language}_{name}.yaml"
            path.write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
        tasks = [f"mini_{language}_{name}" for name, _, _ in made]
        group = {"group": f"mini_{language}", "task": tasks, "metadata": {"version": 1.0}}
        path = folder / f"mini_{language}.yaml"
        path.write_text(yaml.safe_dump(group, sort_keys=False), encoding="utf-8")


def write_texts(recipe: ExperimentConfig, texts: dict[str, Corpus], folder: Path) -> None:
    """Writes what `trimix cpt` reads: of each language a document per line, and rows of lists.

    English has documents of tasks and of nonsense in it, as the bases' has, and texts in which
    words come again. Without all these small_cpt forgets to copy, and also with quotations that it
    reads in the same places at every pass: it knows them by heart.
    """
    rng = random.Random("cpt")
    later = {name: random.Random(f"{name}, later passes") for name in texts}
    for name, corpus in texts.items():
        # A few development documents are enough to choose a checkpoint, and are measured often.
        own = corpus.cpt if name == "en" else curriculum.quoting(corpus.cpt, rng)
        more = corpus.cpt * (recipe.passes.get(name, 1) - 1)
        own = [*own, *curriculum.quoting(more, later[name])]
        for part, documents in {"cpt": own, "dev": corpus.dev[:HELD_OUT]}.items():
            text = "".join(f"{' '.join(document.split())}\n" for document in documents)
            (folder / f"{name}_{part}.txt").write_text(text, encoding="utf-8")
    for name in LANGUAGES:
        listed = curriculum.lists(texts[name], texts["en"], rng)
        for _ in range(recipe.passes[name] - 1):
            listed += curriculum.lists(texts[name], texts["en"], later[name])
        _write(folder / f"{name}_lists.jsonl", [{"text": text} for text in listed])
    corpora, count = list(texts.values()), recipe.documents
    made = curriculum.tasks(texts["en"], count, rng) + curriculum.nonsense(corpora, count, rng)
    rows = ["".join(parts) for parts in made] + curriculum.again(corpora, count // 2, rng)
    rng.shuffle(rows)
    _write(folder / "en_tasks.jsonl", [{"text": row} for row in rows])


def _write(path: Path, rows: Iterable[Problem]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


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

    texts = out / "texts"
    train(
        {
            **cpt_config(recipe, language),
            "base": str(out / f"seed{seed}" / "small_base"),
            "output": str(folder),
            "text": [str(texts / f"{language}_{part}") for part in ("cpt.txt", "lists.jsonl")],
            "english": [str(texts / "en_tasks.jsonl"), str(texts / "en_cpt.txt")],
            "held_out": str(texts / f"{language}_dev.txt"),
            "seed": seed,
        }
    )


def sweep(models: Path, pair: str, items: Path, folder: Path) -> None:
    """Judges a seed's models under all points and policies, and alone in English.

    Args:
        models: Holds them.
        pair: Size of the instruction-tuned one.
        items: The folder that `write_items` wrote.
        folder: Of the results.
    """
    from trimix_lm_eval import sweep as sweeps

    config = content("sweep.yaml")
    config["model_args"] |= {
        "pretrained": str(models / f"{pair}_ins"),
        "small_cpt": str(models / "small_cpt_{language}"),
        "small_base": str(models / "small_base"),
    }
    config |= {
        "include_path": str(items / "tasks"),
        "metadata": {"items": str(items)},
        "output_path": str(folder),
    }
    sweeps.sweep(config)
    alone = {role: path.format(language="bo") for role, path in config["model_args"].items()}
    english = {"policies": ["large_ins", "small_base"]}
    sweeps.sweep(
        config
        | {"model_args": alone, "tasks": ["mini_en"], "sweep": english}
        | {"output_path": str(folder / "en")}
    )


def report(results: list[Path], folder: Path) -> None:
    """Writes the page over all seeds."""
    from trimix_lm_eval.analysis import report as reports

    reports.write(results, folder, force=True)
