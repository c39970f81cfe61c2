"""``trimix check``: what would stop a run and how much it will do, said before it is run."""

from __future__ import annotations

import argparse

from trimix_lm_eval.cli.arguments import add_metadata, joined, read_metadata
from trimix_lm_eval.utils.errors import TrimixError

HELP = "see what would stop a run and how much it will do, before any weights are loaded"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the subcommand takes."""
    parser.add_argument(
        "--config",
        nargs="+",
        default=[],
        metavar="file.yaml",
        help="files for `lm_eval run --config`",
    )
    parser.add_argument(
        "--model_args",
        nargs="+",
        metavar="key=value",
        help="as for lm_eval, in place of the files' or alone: pretrained=…,small_cpt=…,policy=ppl",
    )
    add_metadata(parser)
    parser.add_argument(
        "--load",
        action="store_true",
        help="load the models, and answer some requests of each task: how is each model run, and "
        "how long will the run take?",
    )


def run(args: argparse.Namespace) -> int:
    """Check each config and print what was found; 1 if one of them would fail."""
    from trimix_lm_eval.harness.check import check_run

    model_args, metadata = joined(args.model_args), read_metadata(args.metadata)
    if not args.config and not model_args:
        raise TrimixError("Nothing to check.", "give --config FILE or --model_args a=b,c=d")
    failed = 0
    for path in args.config or [None]:
        name = path or f"--model_args {model_args}"
        try:
            lines = check_run(path, model_args, metadata, args.load)
        except TrimixError as error:
            failed += 1
            _print(f"FAIL  {name}", str(error).splitlines())
        else:
            _print(f"OK    {name}", lines)
    return 1 if failed else 0


def _print(heading: str, lines: list[str]) -> None:
    print(heading, *(f"      {line}" for line in lines), sep="\n")
