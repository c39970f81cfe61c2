"""Sweeps of pico models over tasks that need no network."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from torch.utils import collect_env

from tests.support.running import TRIO
from trimix_lm_eval.sweep import run
from trimix_lm_eval.sweep.plan import Setting, SweepVariant

WORDS = ["the hen", "in the barn", "rivers", "སྐད་ཡིག", "x", "over there", "a rainy inn"]
DOCS = [
    {"q": f"{word}, number {i},", "choices": [" the end", f" {word[::-1]}", " no"], "a": i % 3}
    for i, word in enumerate(WORDS)
]
DOCS[3]["q"] = "too long to fit " * 8 + DOCS[3]["q"]

FREE = {
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{choices[a]}}",
    "fewshot_split": "test",
    "num_fewshot": 1,
    "fewshot_config": {"sampler": "first_n"},
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
    "metric_list": [{"metric": "exact_match"}],
}
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "choices",
    "doc_to_target": "a",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
TASKS: dict[str, dict[str, Any]] = {
    "choice": CHOICE,
    # Every option a second time, without its context; the name begins with that of another task.
    "choice_mutual": {**CHOICE, "metric_list": [{"metric": "acc_mutual_info"}]},
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{q}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "free": FREE,
    "drawn": {
        **FREE,
        "repeats": 2,
        "generation_kwargs": {**FREE["generation_kwargs"], "do_sample": True, "temperature": 1.0},
    },
    "shot_bo": FREE,
    # Exemplars are drawn, by each process for its documents.
    "shot_ug": {**FREE, "doc_to_text": "Q {{q}}", "fewshot_config": {"sampler": "default"}},
}


def write_tasks(folder: Path, names: Iterable[str] = TASKS, docs: int = len(DOCS)) -> Path:
    """Write task YAML and its data; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS[:docs]), encoding="utf-8")
    for name in names:
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            **TASKS[name],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return folder


def config(folders: dict[str, str], yaml_folder: Path, output: Path, **more: Any) -> dict[str, Any]:
    """A sweep's config; ``sweep`` and everything else in ``more``."""
    trio = {role: folders[role] for role in TRIO[1:]}
    return {
        "model": "trimix",
        "model_args": {"pretrained": folders["large_ins"], **trio},
        "tasks": ["choice", "free"],
        "include_path": str(yaml_folder),
        "device": "cpu",
        "output_path": str(output),
        **more,
    }


def make_lm_eval_quick(patch: pytest.MonkeyPatch) -> None:
    """Our tasks without lm-eval's own, and results without a list of what is installed."""

    def manager(include_path: str | None, names: Iterable[str] | None = None) -> Any:
        return TaskManager(
            include_path=include_path, include_defaults=False, metadata={"model": "trimix"}
        )

    patch.setattr(run, "manager_for", manager)
    patch.setattr(collect_env, "get_pretty_env_info", lambda: "left out")


def plain(setting: Setting, variant: SweepVariant) -> dict[str, Any]:
    """What ``lm_eval run`` computes for a variant, as JSON gives it back."""
    made = setting.config
    seeds = dict(
        zip(
            ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"),
            made.seed,
            strict=True,
        )
    )
    results = simple_evaluate(
        model="trimix",
        model_args=variant.model_args,
        tasks=setting.tasks,
        task_manager=TaskManager(
            include_path=made.include_path,
            include_defaults=False,
            metadata=variant.model_args | made.metadata,
        ),
        num_fewshot=made.num_fewshot,
        batch_size=made.batch_size,
        device=made.device,
        limit=made.limit,
        gen_kwargs=made.gen_kwargs,
        fewshot_as_multiturn=made.fewshot_as_multiturn,
        metadata=made.metadata,
        **seeds,
    )
    return json.loads(json.dumps(results, default=str))


def written(path: Path) -> dict[str, Any]:
    """A results file with its samples."""
    results = json.loads(path.read_text(encoding="utf-8"))
    date = path.stem.removeprefix("results_")
    results["samples"] = {}
    for task in results["configs"]:
        lines = (path.parent / f"samples_{task}_{date}.jsonl").read_text(encoding="utf-8")
        results["samples"][task] = [json.loads(line) for line in lines.split("\n") if line]
    return results
