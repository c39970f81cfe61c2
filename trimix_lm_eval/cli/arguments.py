"""What several subcommands share: options that lm-eval has too, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.validation import each_once


def filled(text: str) -> str:
    """A type of argparse: a text that says something.

    An empty one, which a variable of the shell that is not set leaves behind, would as a path be
    the current folder.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty (a variable that is not set?)")
    return text


def given_path(text: str) -> Path:
    """A type of argparse: a path, which is not empty."""
    return Path(filled(text))


def add_metadata(parser: argparse.ArgumentParser) -> None:
    """Add ``--metadata``."""
    parser.add_argument(
        "--metadata",
        nargs="+",
        default=[],
        metavar="key=value",
        help="as for lm_eval: where the benchmarks' files are, data_dir=path (default: "
        "TRIMIX_DATA_DIR, or the Hub)",
    )


def read_metadata(given: Sequence[str]) -> dict[str, object]:
    """Read ``--metadata`` as lm-eval does: one JSON object, or ``key=value`` several times."""
    text = " ".join(given)
    try:
        if text.startswith("{"):
            from trimix_lm_eval.loading.run_config import named_values

            return named_values(text)
        pairs = (part.partition("=") for word in given for part in word.split(","))
        return each_once((key, value) for key, _, value in pairs)
    except ValueError as error:
        what = "is not JSON: " if text.startswith("{") else ""
        raise TrimixError(
            f"--metadata {what}{error}.", 'write it as \'{"data_dir": "path"}\''
        ) from error


def joined(model_args: Sequence[str] | None) -> str | None:
    """The words after ``--model_args`` as lm-eval's one; None where it is not given."""
    return ",".join(model_args) if model_args else None


def interrupted() -> int:
    """Say, once of several processes, how to go on after Ctrl-C; returns the exit code."""
    if os.environ.get("RANK", "0") == "0":
        print("interrupted; the same command goes on from here", file=sys.stderr)
    return 130
