"""``trimix tasks``: the package's tasks, and whether their data can be reached."""

from __future__ import annotations

import argparse

from trimix_lm_eval.cli.arguments import add_metadata, read_metadata
from trimix_lm_eval.utils.errors import TrimixError

HELP = "list the package's tasks, and whether their data can be reached"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the subcommand takes."""
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern over names")
    add_metadata(parser)


def run(args: argparse.Namespace) -> int:
    """Print a line for each task that the pattern matches."""
    from difflib import get_close_matches

    from trimix_lm_eval.tasklib.benchmarks import reach
    from trimix_lm_eval.tasklib.catalog import list_tasks, shipped

    given = read_metadata(args.metadata)
    configs = shipped()
    lines = list_tasks(configs, args.pattern, lambda config: reach(config, given))
    if not lines:
        near = get_close_matches(args.pattern, configs, n=3, cutoff=0.5)
        raise TrimixError(
            f"No task, group or tag is named {args.pattern!r}.",
            f"near it: {', '.join(near)}" if near else "list all of them: trimix tasks",
        )
    print(*lines, sep="\n")
    return 0
