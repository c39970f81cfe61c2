"""``trimix explain``: a page that shows which source each token of a text owes its place to."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trimix_lm_eval.cli.arguments import filled, joined

if TYPE_CHECKING:
    from trimix_lm_eval.engine.sampler import SamplingParams


HELP = "write a page that shows which source each token of a text owes its place to"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the subcommand takes."""
    parser.add_argument(
        "--model_args",
        nargs="+",
        metavar="key=value",
        help="as for lm_eval: pretrained=…,small_cpt=…,policy=ppl (default with --samples: those "
        "of the results file beside it)",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="text", help="continue this text")
    what.add_argument(
        "--prompt-file", type=filled, metavar="file", help="continue the text of a file"
    )
    what.add_argument(
        "--samples",
        type=filled,
        metavar="samples_….jsonl",
        help="a file that lm_eval --log_samples wrote",
    )
    parser.add_argument("--doc", type=int, metavar="N", help="which document of --samples")
    parser.add_argument(
        "--continuation",
        action="append",
        default=[],
        metavar="text",
        help="explain this text after the prompt in place of a generated one; may be repeated, "
        "for the options of one question",
    )
    parser.add_argument(
        "--gen_kwargs",
        metavar="key=value",
        help="as for lm_eval, e.g. max_gen_toks=64 (the default), until=[…] as JSON",
    )
    parser.add_argument(
        "--output",
        type=filled,
        default="explain.html",
        metavar="file.html",
        help="default: explain.html",
    )
    parser.add_argument("--json", type=filled, metavar="file.json", help="write the numbers, too")


def run(args: argparse.Namespace) -> int:
    """Explain a prompt's continuation, or a logged sample."""
    from trimix_lm_eval.analysis.explain.command import ExplainArguments, main

    asked = ExplainArguments(**{name: getattr(args, name) for name in ExplainArguments._fields})
    return main(asked._replace(model_args=joined(args.model_args)), _read_gen_kwargs)


def _read_gen_kwargs(kwargs: Mapping[str, Any], eos: str, seed: int) -> SamplingParams:
    """Read lm-eval's generation arguments, of which the explanation itself knows nothing."""
    from trimix_lm_eval.harness.lm import read_gen_kwargs

    return read_gen_kwargs(kwargs, eos, seed)
