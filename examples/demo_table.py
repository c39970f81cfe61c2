"""Compares the demo's single models, Proxy Tuning and TriMix on `trimix_demo` in one table.

    python examples/demo_table.py [--limit N] [--json FILE]

Nothing is downloaded: models and tasks are in the package. TriMix chooses its weights by the
perplexity of each prompt (of the text so far, for the rolling task), so no row is an upper bound.
Only bits per byte separates all five: at 120 questions the accuracies have a standard error of four
points.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

METHODS = {  # policy of `--model trimix`: name in the table
    "large_ins": "large_ins alone",
    "small_base": "small_base alone",
    "small_cpt": "small_cpt alone",
    "proxy_tuning": "Proxy Tuning",
    "ppl": "TriMix (ppl)",
}


class Column(NamedTuple):
    """One column of the table.

    Attributes:
        title: Heading.
        task: lm-eval task.
        metric: Key in that task's results.
        lower_is_better: Decides which entry is marked.
    """

    title: str
    task: str
    metric: str
    lower_is_better: bool = False


COLUMNS = (
    Column("bits/byte", "trimix_demo_rolling", "bits_per_byte,none", lower_is_better=True),
    Column("choice acc", "trimix_demo_choice", "acc,none"),
    Column("chrF++", "trimix_demo_generate", "chrf++,none"),
)


def evaluate_all(limit: int) -> dict[str, dict[str, float]]:
    """Runs every task under every policy: one bar on a terminal, one line a policy elsewhere.

    Args:
        limit: At most so many documents per task.

    Returns:
        Per policy, a number per column title.
    """
    os.environ["TQDM_DISABLE"] = "1"  # of every bar that does not say otherwise, as this one does
    from tqdm import tqdm  # reads that variable once, here

    scores: dict[str, dict[str, float]] = {}
    total = len(METHODS) * len(COLUMNS)
    with tqdm(total=total, smoothing=0, leave=False, disable=not sys.stderr.isatty()) as bar:
        tasks = load_tasks()
        for policy, name in METHODS.items():
            start = time.perf_counter()
            bar.set_description(name)
            model = load_model(policy)
            scores[policy] = {}
            for column in COLUMNS:
                bar.set_description(f"{name}, {column.title}")
                scores[policy][column.title] = evaluate(model, column, tasks[column], limit)
                bar.update()
            if bar.disable:
                seconds = time.perf_counter() - start
                print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return scores


def load_tasks() -> dict[Column, Any]:
    """Loads the task of each column; lm-eval's own thousands are not looked through."""
    from lm_eval.tasks import TaskManager  # here, so that --help answers at once

    from trimix_lm_eval.utils.paths import tasks_dir

    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    return {column: manager.load([column.task]) for column in COLUMNS}


def load_model(policy: str) -> Any:
    """Makes the model `trimix` as ``lm_eval --model trimix`` does.

    Args:
        policy: A policy of that model.
    """
    from lm_eval.api.registry import get_model

    arguments = {"pretrained": "demo", "policy": policy}
    return get_model("trimix").create_from_arg_obj(arguments, {"batch_size": 8})


def evaluate(model: Any, column: Column, task: Any, limit: int) -> float:
    """Runs the task of a column.

    `lm_eval.evaluate` is the part of `lm_eval.simple_evaluate` that does the work. The other part
    describes the machine and the repository for a results file, which is not written here.

    Args:
        model: From `load_model`.
        column: Names the task and its metric.
        task: From `load_tasks`.
        limit: At most so many documents.
    """
    import lm_eval

    results = lm_eval.evaluate(model, task, limit=limit, bootstrap_iters=0, log_samples=False)
    return results["results"][column.task][column.metric]


def format_table(scores: dict[str, dict[str, float]]) -> str:
    """Aligns the scores and marks the best of each column.

    Args:
        scores: Per policy, a number per column title.

    Returns:
        Lines of text; `*` follows the best entries.
    """
    width = max(map(len, METHODS.values()))
    lines = [" " * width + "".join(f"{column.title:>13}" for column in COLUMNS)]
    best = {
        column.title: (min if column.lower_is_better else max)(
            row[column.title] for row in scores.values()
        )
        for column in COLUMNS
    }
    for policy, row in scores.items():
        cells = "".join(
            f"{row[title]:>12.3f}{'*' if row[title] == top else ' '}" for title, top in best.items()
        )
        lines.append(f"{METHODS[policy]:<{width}}{cells}")
    lines.append("* best of its column; bits/byte: lower is better")
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    """Evaluates every method and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--limit", type=int, default=120, help="documents per task; default: 120 (choice has 390)"
    )
    parser.add_argument("--json", type=Path, help="also write the scores to this file")
    args = parser.parse_args()

    start = time.perf_counter()
    scores = evaluate_all(args.limit)
    print(f"{format_table(scores)}\n({time.perf_counter() - start:.0f} s)")
    if args.json:
        args.json.write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
