"""``trimix compare``: one table of policies by tasks, from results or from a sweep that is run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trimix_lm_eval.cli.arguments import (
    add_metadata,
    filled,
    given_path,
    interrupted,
    joined,
    read_metadata,
)

HELP = (
    "compare policies in one table: ranks, tests with Holm's correction, shares of the gap, costs"
)

#: What says by itself what to run, and is of no use beside results or a sweep's file.
_OF_A_RUN = ("model_args", "policies", "grid", "limit", "num_fewshot", "include_path", "metadata")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the subcommand takes."""
    parser.add_argument(
        "what",
        nargs="*",
        type=given_path,
        metavar="WHAT",
        help="results*.json of lm_eval or trimix sweep, or folders of them; or a sweep's .yaml, "
        "which is run first, or gone on with",
    )
    parser.add_argument(
        "--output",
        type=given_path,
        default=Path("compare"),
        metavar="DIR",
        help="folder for compare.md, compare.tex and compare.csv (default: compare)",
    )
    parser.add_argument(
        "--baseline",
        metavar="policy",
        help="what all others are tested against (default: ppl; with fusion=sequence, large_ins)",
    )
    run = parser.add_argument_group("in place of WHAT, what to run", "all as for lm_eval")
    run.add_argument("--tasks", nargs="+", metavar="task", help="names of tasks")
    run.add_argument("--model_args", nargs="+", metavar="key=value", help="e.g. pretrained=demo")
    run.add_argument(
        "--policies",
        nargs="+",
        metavar="policy",
        help="names, all, or ideas of yours as path/to/file.py:Class (default: all, with "
        "fusion=sequence of those that it takes); options need a sweep's file",
    )
    run.add_argument(
        "--grid",
        metavar="points",
        help="points for the upper bound, e.g. paper (default: none, and no upper bound)",
    )
    run.add_argument("--limit", type=float, metavar="N", help="documents of each task")
    run.add_argument("--num_fewshot", type=int, metavar="N", help="exemplars in each prompt")
    run.add_argument(
        "--include_path", type=filled, metavar="DIR", help="a folder of task YAML of yours"
    )
    run.add_argument(
        "--output_path",
        type=filled,
        default="results",
        metavar="DIR",
        help="folder for the results that are run (default: results)",
    )
    add_metadata(parser)


def run(args: argparse.Namespace) -> int:
    """Run what is to be run, compare, and say what was written; 130 after Ctrl-C."""
    from trimix_lm_eval.analysis import compare
    from trimix_lm_eval.utils.errors import TrimixError
    from trimix_lm_eval.utils.paths import printable

    given = [name for name in _OF_A_RUN if getattr(args, name)]
    if bool(args.what) == bool(args.tasks) or (args.what and given):
        raise TrimixError(
            "Give either results or a sweep's file, or --tasks and --model_args to run.",
            "trimix compare results; trimix compare sweep.yaml; or "
            "trimix compare --model_args pretrained=demo --tasks trimix_demo --limit 20",
        )
    compare.check(args.output)
    sequence = "fusion=sequence" in _words(args.model_args or [])
    asked = [path for path in args.what if path.suffix in (".yaml", ".yml")]
    places = [path for path in args.what if path not in asked]
    try:
        for config in asked or ([_config(args, sequence)] if args.tasks else []):
            written = _swept(config)
            if not written:
                return 0
            places += written
    except KeyboardInterrupt:
        return interrupted()
    found = compare.write(places, args.output, args.baseline)
    print(*found.lines, sep="\n")
    for problem in found.problems:
        print(f"problem: {printable(f'{problem.path} {problem.what}')}")
    for path in found.files:
        print(f"wrote {path}")
    return 0


def _swept(config: Path | dict[str, Any]) -> list[Path]:
    """Run what is missing of a sweep; its results, on the first of several processes only."""
    from trimix_lm_eval import sweep

    print(f"running {config if isinstance(config, Path) else 'the policies'}", file=sys.stderr)
    return sweep.sweep(config)


def _config(args: argparse.Namespace, sequence: bool) -> dict[str, Any]:
    """The sweep that the options stand for; the baseline is one of its policies."""
    from trimix_lm_eval.analysis.compare.comparison import usual_baseline
    from trimix_lm_eval.fusion import policies

    baseline = args.baseline or usual_baseline(sequence)
    wanted = _words(args.policies or ["all"])
    if baseline in policies.names() and not {"all", baseline} & set(wanted):
        wanted.append(baseline)
    block: dict[str, Any] = {"policies": wanted}
    if args.grid:
        block["grid"] = args.grid
    limit = args.limit  # as a file would have it
    config = {
        "model": "trimix",
        "model_args": joined(args.model_args),
        "tasks": _words(args.tasks),
        "limit": int(limit) if limit and limit.is_integer() else limit,
        "num_fewshot": args.num_fewshot,
        "include_path": args.include_path,
        "metadata": read_metadata(args.metadata),
        "output_path": args.output_path,
        "sweep": block,
    }
    return {name: value for name, value in config.items() if value not in (None, {})}


def _words(given: Iterable[str]) -> list[str]:
    """Words that may each hold several, with commas between them."""
    return [word.strip() for text in given for word in text.split(",") if word.strip()]
