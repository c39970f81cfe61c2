"""``trimix sweep``: many points and policies at once, going on where an earlier run stopped."""

from __future__ import annotations

import argparse

from trimix_lm_eval.cli.arguments import Commands, add_command, interrupted


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    sweep = add_command(
        commands,
        "sweep",
        "evaluate many points and policies at once, and go on where an earlier run stopped",
        run,
    )
    sweep.add_argument(
        "config", metavar="FILE", help="a file for `lm_eval run --config` with a `sweep:` block"
    )
    sweep.add_argument(
        "--check", action="store_true", help="say what would be run, before any weights are loaded"
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
