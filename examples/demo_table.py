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
import logging
import time
from pathlib import Path
from typing import NamedTuple

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


def evaluate(policy: str, limit: int) -> dict[str, float]:
    """Runs the group `trimix_demo` under one policy.

    Args:
        policy: A policy of `--model trimix`.
        limit: At most so many documents per task.

    Returns:
        A number per column title.
    """
    import lm_eval  # here, so that --help answers at once

    results = lm_eval.simple_evaluate(
        model="trimix",
        model_args={"pretrained": "demo", "policy": policy},
        tasks=["trimix_demo"],
        batch_size=8,
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
    )["results"]
    return {column.title: results[column.task][column.metric] for column in COLUMNS}


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
    logging.getLogger("lm_eval").setLevel(logging.ERROR)

    start = time.perf_counter()
    scores = {policy: evaluate(policy, args.limit) for policy in METHODS}
    print(f"\n{format_table(scores)}\n({time.perf_counter() - start:.0f} s)")
    if args.json:
        args.json.write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
