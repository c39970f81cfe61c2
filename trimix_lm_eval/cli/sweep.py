"""``trimix sweep``: many points and policies at once, going on where an earlier run stopped."""

from __future__ import annotations

import argparse

from trimix_lm_eval.cli.arguments import interrupted

HELP = "evaluate many points and policies at once, and go on where an earlier run stopped"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the subcommand takes."""
    parser.add_argument(
        "config", metavar="FILE", help="a file for `lm_eval run --config` with a `sweep:` block"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="say what and how much would be run; loads no weights",
    )


def run(args: argparse.Namespace) -> int:
    """Run the sweep and show what came of it; 130 after Ctrl-C."""
    from trimix_lm_eval import sweep

    if args.check:
        print(*sweep.look(args.config), sep="\n")
        return 0
    try:
        written = sweep.sweep(args.config)
    except KeyboardInterrupt:
        return interrupted()
    if written:
        print(*sweep.lines(written), sep="\n")
    return 0
