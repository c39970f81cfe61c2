"""``trimix leaderboard``: a page that compares exported results."""

from __future__ import annotations

import argparse
from pathlib import Path

from trimix_lm_eval.cli.arguments import Commands, add_command


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    board = add_command(commands, "leaderboard", "build a page that compares exported results", run)
    board.add_argument(
        "folder", type=Path, metavar="DIR", help="searched for exported CSV and for results*.json"
    )
    board.add_argument(
        "--output", type=Path, default=Path("site"), metavar="DIR", help="default: site"
    )
    board.add_argument("--title", default="TriMix leaderboard", help="default: TriMix leaderboard")


def run(args: argparse.Namespace) -> int:
    """Build the page."""
    from trimix_lm_eval.analysis import leaderboard

    return leaderboard.main(args.folder, args.output, args.title)
