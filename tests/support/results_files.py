"""Results files as lm-eval writes them, made up: for what reads results without running models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

#: metric -> (higher is better, value of a document from its correctness)
BETTER = {"acc": True, "chrf++": True, "bits_per_byte": False}

SOURCES = {
    role: {
        "path": f"org/{role}",
        "revision": "main",
        "subfolder": "",
        "gguf_file": None,
        "commit": f"{i}" * 40,
        "digest": None,
        "dtype": "bfloat16",
        "quantization": None,
    }
    for i, role in enumerate(("large_ins", "small_cpt", "small_base"), start=1)
}


def trimix_config(policy: str, **options: Any) -> dict[str, Any]:
    """``config.trimix`` of a run under a policy."""
    chosen = options.pop("weights_chosen", {})
    return {
        "version": "0.1.0",
        "sources": SOURCES,
        "policy": {"name": policy, **options},
        "plausibility": None,
        "seed": 1234,
        "weights_chosen": chosen,
        "task_points": {},
        "speculation": {"mode": "auto"},
        "truncated_requests": 0,
        "data": {},
    }


def aggregate(path: Path, group: str, below: Sequence[str], weighted: bool = False) -> None:
    """Add a group to a results file, as lm-eval aggregates it.

    Args:
        path: The results file.
        group: Its name.
        below: Its tasks, or groups that were added before.
        weighted: Whether tasks weigh as much as they have documents.
    """
    whole = json.loads(path.read_text())
    members = whole["group_subtasks"]
    members[group] = list(below)
    leaves = [t for name in below for t in members.get(name, [name])]
    results = [whole["results"][task] for task in leaves]
    sizes = [r["sample_len"] if weighted else 1 for r in results]
    metric = next(key for key in results[0] if "," in key and "_stderr" not in key)
    error = metric.replace(",", "_stderr,")
    mean = sum(w * r[metric] for w, r in zip(sizes, results, strict=True)) / sum(sizes)
    made = {
        "alias": group,
        "name": group,
        "sample_len": sum(r["sample_len"] for r in results),
        metric: mean,
        error: sum((w * r[error]) ** 2 for w, r in zip(sizes, results, strict=True)) ** 0.5
        / sum(sizes),
        "sample_count": {metric: sum(r["sample_len"] for r in results)},
    }
    whole.setdefault("groups", {})[group] = whole["results"][group] = made
    whole["versions"][group] = "1.0"
    whole["higher_is_better"][group] = whole["higher_is_better"][leaves[0]]
    path.write_text(json.dumps(whole, indent=2), encoding="utf-8")


def write_run(
    folder: Path,
    documents: Mapping[str, Sequence[float]],
    *,
    trimix: Mapping[str, Any] | None = None,
    model: str = "trimix",
    metric: str = "acc",
    of: int | None = None,
    limit: float | None = None,
    samples: bool = True,
    date: float = 1_790_000_000.0,
    stamp: str = "2026-11-01T00-00-00.000000",
    **raw: Any,
) -> Path:
    """Write a results file and its samples.

    Args:
        folder: Where to.
        documents: By task, the metric's value on every document; the score is their mean.
        trimix: ``config.trimix``, see `trimix_config`; None for another model.
        model: lm-eval's name of the model.
        metric: The metric of all tasks.
        of: How many documents the tasks have, if not all are there.
        limit: lm-eval's ``--limit``.
        samples: Whether to log samples.
        date: Of the run.
        stamp: In the names of the files.
        **raw: Further top-level entries of the file.

    Returns:
        The results file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if samples:
        for task, values in documents.items():
            lines = [_sample(task, metric, i, value) for i, value in enumerate(values)]
            file = folder / f"samples_{task}_{stamp}.jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    whole = {
        "results": {task: _result(task, metric, values) for task, values in documents.items()},
        "group_subtasks": {},
        "configs": {task: _task_config(task, metric) for task in documents},
        "versions": dict.fromkeys(documents, 1.0),
        "n-shot": dict.fromkeys(documents, 0),
        "higher_is_better": {task: {metric: BETTER[metric]} for task in documents},
        "n-samples": {
            task: {"original": of or len(values), "effective": len(values)}
            for task, values in documents.items()
        },
        "config": _run_config(model, limit, trimix),
        **_rest(model, documents),
        "date": date,
        **raw,
    }
    path = folder / f"results_{stamp}.json"
    path.write_text(json.dumps(whole, indent=2), encoding="utf-8")
    return path


def _sample(task: str, metric: str, i: int, value: float) -> dict[str, Any]:
    """What is logged of one document."""
    return {
        "doc_id": i,
        "doc": {"text": f"document {i}"},
        "target": "A",
        "filter": "none",
        "metrics": [metric],
        "doc_hash": f"{task}-{i}",
        "prompt_hash": f"{task}-{i}",
        metric: value,
    }


def _result(task: str, metric: str, values: Sequence[float]) -> dict[str, Any]:
    """The score of a task and its standard error."""
    n = len(values)
    mean = sum(values) / n
    variance = sum((v - mean) ** 2 for v in values) / max(n - 1, 1)
    return {
        "name": task,
        "alias": task,
        "sample_len": n,
        f"{metric},none": mean,
        f"{metric}_stderr,none": (variance / n) ** 0.5,
    }


def _task_config(task: str, metric: str) -> dict[str, Any]:
    return {
        "task": task,
        "num_fewshot": 0,
        "metric_list": [{"metric": metric, "higher_is_better": BETTER[metric]}],
        "output_type": "multiple_choice",
        "metadata": {"version": 1.0},
    }


def _run_config(
    model: str, limit: float | None, trimix: Mapping[str, Any] | None
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model": model,
        "model_args": {"pretrained": "org/large_ins"},
        "model_num_parameters": 1,
        "limit": limit,
        "bootstrap_iters": 100000,
        "gen_kwargs": {},
        "random_seed": 0,
        "numpy_seed": 1234,
        "torch_seed": 1234,
        "fewshot_seed": 1234,
    }
    return config if trimix is None else {**config, "trimix": dict(trimix)}


def _rest(model: str, tasks: Iterable[str]) -> dict[str, Any]:
    """What a results file has besides: versions, names, hashes."""
    return {
        "git_hash": "abcdef0",
        "transformers_version": "5.23.0",
        "lm_eval_version": "0.4.13",
        "task_hashes": {task: f"hash-{task}" for task in tasks},
        "model_source": model,
        "model_name": "org/large_ins",
        "model_name_sanitized": "org__large_ins",
        "system_instruction": None,
        "chat_template": None,
        "total_evaluation_time_seconds": "1.0",
    }
