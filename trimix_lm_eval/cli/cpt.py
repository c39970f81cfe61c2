"""``trimix cpt``: train a small base model further on raw text of one language."""

from __future__ import annotations

import argparse

from trimix_lm_eval.cli.arguments import Commands, add_command, interrupted


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    cpt = add_command(
        commands,
        "cpt",
        "train a small base model further on raw text of one language, and go on where an earlier "
        "run stopped",
        run,
    )
    cpt.add_argument("config", metavar="FILE", help="YAML: base, text, output …; see new-language")


def run(args: argparse.Namespace) -> int:
    """Train, or go on with it; 130 after Ctrl-C."""
    from trimix_lm_eval.training.cpt import train

    try:
        train(args.config)
    except KeyboardInterrupt:
        return interrupted()
    return 0
