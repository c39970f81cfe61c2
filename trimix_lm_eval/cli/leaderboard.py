"""``trimix leaderboard``: a page that compares exported results."""

from __future__ import annotations

import argparse
from pathlib import Path

from trimix_lm_eval.cli.arguments import given_path

HELP = "build a page that compares exported results"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the subcommand takes."""
    parser.add_argument(
        "folder",
        type=given_path,
        metavar="DIR",
        help="searched for exported CSV and for results*.json",
    )
    parser.add_argument(
        "--output", type=given_path, default=Path("site"), metavar="DIR", help="default: site"
    )
    parser.add_argument("--title", default="TriMix leaderboard", help="default: TriMix leaderboard")


def run(args: argparse.Namespace) -> int:
    """Build the page."""
    from trimix_lm_eval.analysis import leaderboard

    return leaderboard.main(args.folder, args.output, args.title)
