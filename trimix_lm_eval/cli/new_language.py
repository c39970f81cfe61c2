"""``trimix new-language``: what a language needs, written from text in it."""

from __future__ import annotations

import argparse
from pathlib import Path

from trimix_lm_eval.cli.arguments import Commands, add_command


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    new = add_command(
        commands,
        "new-language",
        "write what a language needs, from text in it: configs to train and compare, tasks",
        run,
    )
    new.add_argument("code", metavar="CODE", help="as in FLORES-200 (swh_Latn), or any other")
    new.add_argument(
        "--text",
        nargs="+",
        required=True,
        metavar="FILE",
        help="raw text: .txt, .jsonl, .parquet, or folders",
    )
    new.add_argument(
        "--base", default="demo", metavar="MODEL", help="small base model (default: demo's)"
    )
    new.add_argument("--large", metavar="MODEL", help="large model of the same family")
    new.add_argument("--output", type=Path, metavar="DIR", help="default: CODE")
    new.add_argument("--name", help="of the language in prompts (default: that in FLORES-200)")
    new.add_argument(
        "--english", nargs="+", default=[], metavar="FILE", help="English text to be mixed in"
    )
    new.add_argument("--text-field", default="text", help="column of JSONL and Parquet")
    new.add_argument("--license", default="", help="of the text, for the model's card")
    new.add_argument("--force", action="store_true", help="write over files that are there")


def run(args: argparse.Namespace) -> int:
    """Write the files, and say what to do with them."""
    from trimix_lm_eval.training.new_language import NewLanguageArguments, main

    return main(
        NewLanguageArguments(
            code=args.code,
            text=args.text,
            base=args.base,
            large=args.large,
            output=args.output,
            name=args.name,
            english=args.english,
            text_field=args.text_field,
            license=args.license,
            force=args.force,
        )
    )
