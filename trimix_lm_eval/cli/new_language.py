"""``trimix new-language``: what a language needs, written from text in it."""

from __future__ import annotations

import argparse

from trimix_lm_eval.cli.arguments import filled, given_path

HELP = "write what a language needs, from text in it: configs to train and compare, tasks"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the subcommand takes."""
    parser.add_argument("code", metavar="CODE", help="as in FLORES-200 (swh_Latn), or any other")
    parser.add_argument(
        "--text",
        type=filled,
        nargs="+",
        required=True,
        metavar="FILE",
        help="raw text: .txt, .jsonl, .parquet, or folders",
    )
    parser.add_argument(
        "--base", default="demo", metavar="MODEL", help="small base model (default: demo's)"
    )
    parser.add_argument("--large", metavar="MODEL", help="large model of the same family")
    parser.add_argument("--output", type=given_path, metavar="DIR", help="default: CODE")
    parser.add_argument("--name", help="of the language in prompts (default: that in FLORES-200)")
    parser.add_argument(
        "--english",
        type=filled,
        nargs="+",
        default=[],
        metavar="FILE",
        help="English text to be mixed in",
    )
    parser.add_argument("--text-field", default="text", help="column of JSONL and Parquet")
    parser.add_argument("--license", default="", help="of the text, for the model's card")
    parser.add_argument("--force", action="store_true", help="write over files that are there")


def run(args: argparse.Namespace) -> int:
    """Write the files, and say what to do with them."""
    from trimix_lm_eval.training.new_language import NewLanguageArguments, main

    fields = NewLanguageArguments._fields
    return main(NewLanguageArguments(**{name: getattr(args, name) for name in fields}))
