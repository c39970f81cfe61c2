"""Writes the YAML of every task and group in this folder, one file each, as lm-eval wants them.

    python tasks/generate.py

The tasks are those of `trimix_lm_eval.tasklib.benchmarks.BENCHMARKS`; only groups are made up here.
A file says which template it includes and which data it reads; what a task is stands in the
template (the files whose names begin with an underscore), which are written by hand. A test
compares what is committed with what this writes.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimix_lm_eval.tasklib import benchmarks, languages

HERE = Path(__file__).resolve().parent
LANGUAGES = languages.of_benchmark("milic_eval")
INDIC = tuple(one.flores for one in languages.LANGUAGES if one.indic)
MC = ("reading_comprehension", "response_selection", "text_classification")

Files = dict[str, str]


def main() -> None:
    """Write all files anew; files of tasks that are no more are removed."""
    wanted = files()
    for folder in {name.partition("/")[0] for name in wanted}:
        for path in (HERE / folder).rglob("*.yaml"):
            if path.relative_to(HERE).as_posix() not in wanted:
                path.unlink()
    for name, text in wanted.items():
        (HERE / name).parent.mkdir(parents=True, exist_ok=True)
        (HERE / name).write_text(text, encoding="utf-8")


def files() -> Files:
    """The content of every file that is generated, by its path below this folder."""
    made: Files = {}
    for entry in benchmarks.BENCHMARKS:
        for variant, language in entry.each():
            made.update(_task(entry, variant, language))
    return {**made, **groups()}


def groups() -> Files:
    """The groups, each with the mean of `score` over its tasks, all of equal weight."""
    made: dict[str, tuple[str, list[str]]] = {}
    for prompt in ("en", "zh"):
        suffix = "" if prompt == "en" else "_zh"
        whole = "ENG-G" if prompt == "en" else "CHN-G"
        rich = "eng_g" if prompt == "en" else "chn_g"
        columns = {
            "mc": ("MC", lambda c, s=suffix: [f"{name}{s}" for name in MC]),
            rich: (whole, lambda c, s=suffix, p=prompt: [f"math{s}", f"translation_{c}_{p}"]),
            "lrl_g": (
                "LRL-G",
                lambda c, s=suffix, p=prompt: [f"title_generation{s}", f"translation_{p}_{c}"],
            ),
        }
        for column, (alias, tasks) in columns.items():
            everywhere = []
            for code in LANGUAGES:
                name = f"trimix_milic_{code}{suffix}_{column}"
                made[name] = (
                    f"{code}: {alias}",
                    [f"trimix_milic_{code}_{task}" for task in tasks(code)],
                )
                everywhere += made[name][1]
            made[f"trimix_milic{suffix}_{column}"] = (f"MiLiC-Eval: {alias}", everywhere)
        for code in LANGUAGES:
            name = f"trimix_milic_{code}{suffix}"
            made[name] = (f"{code}: Avg", [f"{name}_{column}" for column in columns])
        made[f"trimix_milic{suffix}"] = (
            "MiLiC-Eval: Avg",
            [f"trimix_milic_{code}{suffix}" for code in LANGUAGES],
        )
        made[f"trimix_milic{suffix}_columns"] = (
            "MiLiC-Eval: Avg",
            [f"trimix_milic{suffix}_{column}" for column in columns],
        )
    for code in LANGUAGES:
        made[f"trimix_milic_{code}_mc_ll"] = (
            f"{code}: MC by log-likelihood",
            [f"trimix_milic_{code}_{name}_ll" for name in MC],
        )
    made["trimix_milic_mc_ll"] = (
        "MiLiC-Eval: MC by log-likelihood",
        [f"trimix_milic_{code}_mc_ll" for code in LANGUAGES],
    )
    for ending, says in (("", ""), ("_ll", " by log-likelihood")):
        for benchmark, title in (("sib200", "SIB-200"), ("belebele", "Belebele")):
            made[f"trimix_indic_{benchmark}{ending}"] = (
                f"Indic: {title}{says}",
                [f"trimix_{benchmark}_{code}{ending}" for code in INDIC],
            )
        made[f"trimix_indic{ending}"] = (
            f"Indic: Avg{says}",
            [f"trimix_indic_sib200{ending}", f"trimix_indic_belebele{ending}"],
        )
    made["trimix_all"] = ("All: Avg", ["trimix_milic", "trimix_indic"])
    return {f"groups/{name}.yaml": _group(name, *what) for name, what in made.items()}


def _task(entry: benchmarks.Tasks, variant: benchmarks.Variant, language: str) -> Files:
    """The file of one task, by its path."""
    folder = (entry.folder or entry.name).format(language=language)
    name = f"trimix_{entry.name}_{language}{variant.name.format(language=language)}"
    includes = [posixpath.relpath(template, folder) for template in variant.templates]
    lines = [
        f"include: {includes[0] if len(includes) == 1 else json.dumps(includes)}",
        f"task: {name}",
        f"tag: trimix_{entry.name}{variant.tag}",
        "dataset_kwargs:",
        "  select:",
        *_lines(variant.select, language),
    ]
    return {f"{folder}/{name}.yaml": "\n".join(lines) + "\n"}


def _lines(select: Mapping[str, Any], language: str) -> list[str]:
    return [f"    {key}: {str(value).format(language=language)}" for key, value in select.items()]


def _group(name: str, alias: str, tasks: list[str]) -> str:
    members = "".join(f"  - {task}\n" for task in tasks)
    return (
        f'group: {name}\ngroup_alias: "{alias}"\ntask:\n{members}'
        "aggregate_metric_list:\n"
        "  - metric: score\n    aggregation: mean\n    weight_by_size: false\n"
        "metadata:\n  version: 1.0\n"
    )


if __name__ == "__main__":
    main()
