"""``trimix export``: results as files to submit, if they may be."""

from __future__ import annotations

import argparse
from pathlib import Path

from trimix_lm_eval.cli.arguments import given_path

HELP = "turn results into files to submit, if they may be"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the subcommand takes."""
    parser.add_argument(
        "results",
        nargs="+",
        type=given_path,
        metavar="RESULTS",
        help="results*.json, or folders of them",
    )
    parser.add_argument(
        "--to", required=True, choices=("eval-results", "model-index", "card", "csv")
    )
    parser.add_argument(
        "--output", type=given_path, default=Path("export"), metavar="DIR", help="default: export"
    )
    parser.add_argument("--repo", metavar="owner/name", help="the repository on the Hub")
    parser.add_argument("--push", action="store_true", help="upload to --repo; asks first")
    parser.add_argument("--pr", action="store_true", help="upload as a pull request")
    parser.add_argument("--yes", action="store_true", help="upload without asking")


def run(args: argparse.Namespace) -> int:
    """Write the files, and upload them if that is asked for."""
    from trimix_lm_eval.analysis import export

    export.main(
        args.results,
        args.to,
        args.output,
        repo=args.repo,
        push=args.push or args.pr,
        yes=args.yes,
        pull_request=args.pr,
    )
    return 0
