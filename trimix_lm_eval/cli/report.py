"""``trimix report``: tables, tests and pictures from results files, as a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from trimix_lm_eval.cli.arguments import given_path

HELP = "tables, tests and pictures from results files, as a page"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the subcommand takes."""
    parser.add_argument(
        "results",
        nargs="+",
        type=given_path,
        metavar="RESULTS",
        help="results*.json of lm_eval or trimix sweep, or folders of them",
    )
    parser.add_argument(
        "--output",
        type=given_path,
        default=Path("report"),
        metavar="DIR",
        help="folder for report.html, report.md and CSV (default: report); an earlier report "
        "there is replaced",
    )
    parser.add_argument(
        "--force", action="store_true", help="write into a folder that holds other files, too"
    )


def run(args: argparse.Namespace) -> int:
    """Write a report, and say what was written and what could not be used."""
    from trimix_lm_eval.analysis.report import write
    from trimix_lm_eval.utils.paths import printable

    written = write(args.results, args.output, args.force)
    for problem in written.problems:
        print(f"problem: {printable(f'{problem.path} {problem.what}')}")
    if written.superseded:
        print(f"{written.superseded} numbers were replaced by newer runs; the report lists them")
    pictures = [path for path in written.files if path.suffix == ".png"]
    for path in written.files:
        if path not in pictures:
            print(f"wrote {path}")
    if pictures:
        many = f"{len(pictures)} picture{'' if len(pictures) == 1 else 's'}"
        print(f"wrote {many} in {pictures[0].parent}")
    return 0
