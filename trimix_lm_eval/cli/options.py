"""The options of the command ``trimix``: one small parser for each subcommand."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from trimix_lm_eval import __version__

_EPILOG = """\
examples:
  trimix run --model trimix --model_args pretrained=demo --tasks trimix_demo --limit 8
  trimix check --config my_run.yaml
  trimix tasks '*_choice'
  trimix sweep examples/sweep_demo.yaml
  trimix explain --model_args pretrained=demo --prompt 'The old king'
  trimix new-language swh_Latn --text swahili.txt

`trimix run …` is `lm_eval run …`, which knows --model trimix too once this package is installed.
"""

#: Where subcommands are added.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

#: lm-eval's subcommands, and what our --help says of them.
PASSED_ON = {
    "run": "evaluate models on tasks (lm-eval; the options are its own)",
    "ls": "list all tasks, lm-eval's and ours (lm-eval)",
    "validate": "check task configurations (lm-eval)",
}


def parser() -> argparse.ArgumentParser:
    """Build the parser; each subcommand adds its own."""
    made = argparse.ArgumentParser(
        prog="trimix",
        description="Fuse several language models and evaluate them with lm-eval.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"trimix-lm-eval {__version__}")
    commands = made.add_subparsers(metavar="command", required=True)
    for name, help_text in PASSED_ON.items():
        commands.add_parser(name, help=help_text, add_help=False)
    for add in (
        _add_check,
        _add_tasks,
        _add_sweep,
        _add_report,
        _add_explain,
        _add_export,
        _add_leaderboard,
        _add_cpt,
        _add_new_language,
    ):
        add(commands)
    return made


def _add_check(commands: Commands) -> None:
    check = _add(commands, "check", "see what would stop a run, before any weights are loaded")
    check.add_argument(
        "--config",
        nargs="+",
        default=[],
        metavar="file.yaml",
        help="files for `lm_eval run --config`",
    )
    check.add_argument(
        "--model_args",
        nargs="+",
        metavar="key=value",
        help="as for lm_eval, in place of the files' or alone: pretrained=…,small_cpt=…,policy=ppl",
    )
    _add_metadata(check)


def _add_tasks(commands: Commands) -> None:
    tasks = _add(
        commands, "tasks", "list the package's tasks, and whether their data can be reached"
    )
    tasks.add_argument("pattern", nargs="?", default="*", help="shell pattern over names")
    _add_metadata(tasks)


def _add_sweep(commands: Commands) -> None:
    sweep = _add(
        commands,
        "sweep",
        "evaluate many points and policies at once, and go on where an earlier run stopped",
    )
    sweep.add_argument(
        "config", metavar="FILE", help="a file for `lm_eval run --config` with a `sweep:` block"
    )
    sweep.add_argument(
        "--check", action="store_true", help="say what would be run, before any weights are loaded"
    )


def _add_metadata(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--metadata",
        nargs="+",
        default=[],
        metavar="key=value",
        help="as for lm_eval: where the benchmarks' files are, data_dir=path (default: "
        "TRIMIX_DATA_DIR, or the Hub)",
    )


def _add_report(commands: Commands) -> None:
    report = _add(commands, "report", "tables, tests and pictures from results files, as a page")
    report.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULTS",
        help="results*.json of lm_eval or trimix sweep, or folders of them",
    )
    report.add_argument(
        "--output",
        type=Path,
        default=Path("report"),
        metavar="DIR",
        help="folder for report.html, report.md and CSV (default: report); an earlier report "
        "there is replaced",
    )
    report.add_argument(
        "--force", action="store_true", help="write into a folder that holds other files, too"
    )


def _add_explain(commands: Commands) -> None:
    explain = _add(
        commands,
        "explain",
        "write a page that shows which source each token of a text owes its place to",
    )
    explain.add_argument(
        "--model_args",
        nargs="+",
        metavar="key=value",
        help="as for lm_eval: pretrained=…,small_cpt=…,policy=ppl (default with --samples: those "
        "of the results file beside it)",
    )
    what = explain.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="text", help="continue this text")
    what.add_argument("--prompt-file", metavar="file", help="continue the text of a file")
    what.add_argument(
        "--samples", metavar="samples_….jsonl", help="a file that lm_eval --log_samples wrote"
    )
    explain.add_argument("--doc", type=int, metavar="N", help="which document of --samples")
    explain.add_argument(
        "--continuation",
        action="append",
        default=[],
        metavar="text",
        help="explain this text after the prompt in place of a generated one; may be repeated, "
        "for the options of one question",
    )
    explain.add_argument(
        "--gen_kwargs",
        metavar="key=value",
        help="as for lm_eval, e.g. max_gen_toks=64 (the default), until=[…] as JSON",
    )
    explain.add_argument(
        "--output", default="explain.html", metavar="file.html", help="default: explain.html"
    )
    explain.add_argument("--json", metavar="file.json", help="write the numbers, too")


def _add_export(commands: Commands) -> None:
    export = _add(commands, "export", "turn results into files to submit, if they may be")
    export.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS", help="results*.json, or folders of them"
    )
    export.add_argument(
        "--to", required=True, choices=("eval-results", "model-index", "card", "csv")
    )
    export.add_argument(
        "--output", type=Path, default=Path("export"), metavar="DIR", help="default: export"
    )
    export.add_argument("--repo", metavar="owner/name", help="the repository on the Hub")
    export.add_argument("--push", action="store_true", help="upload to --repo; asks first")
    export.add_argument("--pr", action="store_true", help="upload as a pull request")
    export.add_argument("--yes", action="store_true", help="upload without asking")


def _add_leaderboard(commands: Commands) -> None:
    board = _add(commands, "leaderboard", "build a page that compares exported results")
    board.add_argument(
        "folder", type=Path, metavar="DIR", help="searched for exported CSV and for results*.json"
    )
    board.add_argument(
        "--output", type=Path, default=Path("site"), metavar="DIR", help="default: site"
    )
    board.add_argument("--title", default="TriMix leaderboard", help="default: TriMix leaderboard")


def _add_cpt(commands: Commands) -> None:
    cpt = _add(
        commands,
        "cpt",
        "train a small base model further on raw text of one language, and go on where an earlier "
        "run stopped",
    )
    cpt.add_argument("config", metavar="FILE", help="YAML: base, text, output …; see new-language")


def _add_new_language(commands: Commands) -> None:
    new = _add(
        commands,
        "new-language",
        "write what a language needs, from text in it: configs to train and compare, tasks",
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


def _add(commands: Commands, name: str, description: str) -> argparse.ArgumentParser:
    """Add a subcommand of our own."""
    added = commands.add_parser(name, help=description, description=description.capitalize())
    added.set_defaults(command=name)
    return added
