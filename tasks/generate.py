"""Writes the YAML of every task and group in this folder, one file each, as lm-eval wants them.

    python tasks/generate.py

A file says which template it includes and which data it reads; what a task is stands in the
template (the files whose names begin with an underscore), which are written by hand. A test
compares what is committed with what this writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LANGUAGES = ("bo", "ug", "kk", "mn")
FLORES = ("ben_Beng", "tam_Taml", "tel_Telu", "ory_Orya", "bod_Tibt", "kaz_Cyrl", "khk_Cyrl")
INDIC = FLORES[:4]

#: Tasks with a choice, and the template that makes log-likelihoods of it.
CHOICES = {
    "reading_comprehension": "../../_letters_ll",
    "response_selection": "../../_letters_ll",
    "text_classification": "../../_labels_ll",
    "vocabulary": "../../_letters_ll",
    "text_classification_sentence": "../../_labels_ll",
}
MC = ("reading_comprehension", "response_selection", "text_classification")

Files = dict[str, str]


def main() -> None:
    """Write all files anew; files of tasks that are no more are removed."""
    wanted = {**milic_eval(), **sib200(), **belebele(), **groups()}
    for folder in ("milic_eval", "sib200", "belebele", "groups"):
        for path in (HERE / folder).rglob("*.yaml"):
            if path.relative_to(HERE).as_posix() not in wanted:
                path.unlink()
    for name, text in wanted.items():
        (HERE / name).parent.mkdir(parents=True, exist_ok=True)
        (HERE / name).write_text(text, encoding="utf-8")


def milic_eval() -> Files:
    """The tasks of MiLiC-Eval: eleven in four languages and two languages of the prompt."""
    made: Files = {}
    for code in LANGUAGES:
        for prompt in ("en", "zh"):
            suffix = "" if prompt == "en" else "_zh"
            for name, likelihood in CHOICES.items():
                data = {"task": name, "language": code, "prompt": prompt}
                for ending, includes in (("", []), ("_ll", [likelihood])):
                    kind = f"{name}{suffix}{ending}"
                    task = f"trimix_milic_{code}_{kind}"
                    made[f"milic_eval/{code}/{task}.yaml"] = _task(
                        task, [f"../_{name}_{prompt}", *includes], data, f"trimix_milic_{kind}"
                    )
            for name in ("title_generation", "math"):
                data = {"task": name, "language": code, "prompt": prompt}
                task = f"trimix_milic_{code}_{name}{suffix}"
                made[f"milic_eval/{code}/{task}.yaml"] = _task(
                    task, [f"../_{name}_{prompt}"], data, f"trimix_milic_{name}{suffix}"
                )
            for kind, short in (
                ("translation_dialogue", "translation"),
                ("translation_article", "translation_article"),
            ):
                for source, target in ((code, prompt), (prompt, code)):
                    data = {"task": kind, "language": code, "prompt": prompt}
                    task = f"trimix_milic_{code}_{short}_{source}_{target}"
                    made[f"milic_eval/{code}/{task}.yaml"] = _task(
                        task,
                        [f"../_{kind}_{prompt}"],
                        {**data, "source": source, "target": target},
                        f"trimix_milic_{short}{suffix}",
                    )
    return made


def sib200() -> Files:
    """Topic classification in eight languages."""
    made: Files = {}
    for code in (*FLORES, "uig_Arab"):
        for ending, includes in (("", []), ("_ll", ["../_labels_ll"])):
            task = f"trimix_sib200_{code}{ending}"
            made[f"sib200/{task}.yaml"] = _task(
                task, ["_sib200", *includes], {"language": code}, f"trimix_sib200{ending}"
            )
    return made


def belebele() -> Files:
    """Reading comprehension in seven languages, without exemplars and with five."""
    made: Files = {}
    for code in FLORES:
        for shots, template in ((0, []), (5, ["_five_shot"])):
            for ending, includes in (("", []), ("_ll", ["../_letters_ll"])):
                kind = f"_{shots}shot" if shots else ""
                task = f"trimix_belebele_{code}{kind}{ending}"
                data = {"language": code, **({"held_out": shots} if shots else {})}
                made[f"belebele/{task}.yaml"] = _task(
                    task,
                    ["_belebele", *template, *includes],
                    data,
                    f"trimix_belebele{kind}{ending}",
                )
    return made


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


def _task(name: str, includes: list[str], data: dict[str, Any], tag: str) -> str:
    included = includes[0] if len(includes) == 1 else json.dumps(includes)
    lines = [f"include: {included}", f"task: {name}"]
    lines += [f"tag: {tag}", "dataset_kwargs:", "  select:"]
    lines += [f"    {key}: {value}" for key, value in data.items()]
    return "\n".join(lines) + "\n"


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
