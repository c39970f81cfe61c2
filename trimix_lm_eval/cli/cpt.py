"""``trimix cpt``: train a small base model further on raw text of one language."""

from __future__ import annotations

import argparse

from trimix_lm_eval.cli.arguments import interrupted

HELP = (
    "train a small base model further on raw text of one language, and go on where an earlier "
    "run stopped"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the subcommand takes."""
    parser.add_argument(
        "config", metavar="FILE", help="YAML: base, text, output …; see new-language"
    )


def run(args: argparse.Namespace) -> int:
    """Train, or go on with it; 130 after Ctrl-C."""
    from trimix_lm_eval.training.cpt import train

    try:
        train(args.config)
    except KeyboardInterrupt:
        return interrupted()
    return 0
