"""The command ``trimix``, also ``python -m trimix_lm_eval``.

Each subcommand is one small parser and a few lines that import the module doing the job, so that
``--help`` imports neither torch nor lm-eval and answers at once. What belongs to lm-eval (``run``,
``ls``, ``validate``) is handed to lm-eval's own command line word for word.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from trimix_lm_eval import __version__, _autoload
from trimix_lm_eval.errors import TrimixError

_EPILOG = """\
examples:
  trimix run --model trimix --model_args pretrained=demo --tasks trimix_demo --limit 8
  trimix check --config my_run.yaml
  trimix tasks '*_choice'
  trimix explain --model_args pretrained=demo --prompt 'The old king'

`trimix run …` is `lm_eval run …`, which knows --model trimix too once this package is installed.
"""

#: lm-eval's subcommands, and what our --help says of them.
_PASSED_ON = {
    "run": "evaluate models on tasks (lm-eval; the options are its own)",
    "ls": "list all tasks, lm-eval's and ours (lm-eval)",
    "validate": "check task configurations (lm-eval)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0, 1 after an error that the user can mend, 130 after Ctrl-C.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if _is_for_lm_eval(args):
            return _lm_eval(args)
        chosen = _parser().parse_args(args)
        return int(chosen.command(chosen))
    except TrimixError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    """Build the parser: one block for each subcommand."""
    parser = argparse.ArgumentParser(
        prog="trimix",
        description="Fuse several language models and evaluate them with lm-eval.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"trimix-lm-eval {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, help_text in _PASSED_ON.items():
        commands.add_parser(name, help=help_text, add_help=False)

    check = _add(
        commands, "check", _check, "see what would stop a run, before any weights are loaded"
    )
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

    tasks = _add(
        commands, "tasks", _tasks, "list the package's tasks, and whether their data can be reached"
    )
    tasks.add_argument("pattern", nargs="?", default="*", help="shell pattern over names")
    _add_export(commands)
    for command in (check, tasks):
        command.add_argument(
            "--metadata",
            nargs="+",
            default=[],
            metavar="key=value",
            help="as for lm_eval: where the benchmarks' files are, data_dir=path (default: "
            "TRIMIX_DATA_DIR, or the Hub)",
        )

    report = _add(
        commands, "report", _report, "tables, tests and pictures from results files, as a page"
    )
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
    _add_explain(commands)
    return parser


def _add_explain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The options of ``trimix explain``."""
    explain = _add(
        commands,
        "explain",
        _explain,
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


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[argparse.Namespace], int],
    description: str,
) -> argparse.ArgumentParser:
    """Add a subcommand of our own; ``command`` turns the parsed arguments into an exit code."""
    parser = commands.add_parser(name, help=description, description=description.capitalize())
    parser.set_defaults(command=command)
    return parser


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What makes results public: `export` and `leaderboard`."""
    export = _add(commands, "export", _export, "turn results into files to submit, if they may be")
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

    board = _add(
        commands, "leaderboard", _leaderboard, "build a page that compares exported results"
    )
    board.add_argument(
        "folder", type=Path, metavar="DIR", help="searched for exported CSV and for results*.json"
    )
    board.add_argument(
        "--output", type=Path, default=Path("site"), metavar="DIR", help="default: site"
    )
    board.add_argument("--title", default="TriMix leaderboard", help="default: TriMix leaderboard")


def _check(args: argparse.Namespace) -> int:
    from trimix_lm_eval import preflight

    model_args = ",".join(args.model_args) if args.model_args else None
    return preflight.main(args.config, model_args, _options(args.metadata))


def _explain(args: argparse.Namespace) -> int:
    from trimix_lm_eval.explain.command import Asked, main

    given = {name: getattr(args, name) for name in Asked._fields}
    if args.model_args:
        given["model_args"] = ",".join(args.model_args)
    return main(Asked(**given))


def _tasks(args: argparse.Namespace) -> int:
    from difflib import get_close_matches

    from trimix_lm_eval.catalog import list_tasks, shipped
    from trimix_lm_eval.tasklib.reach import reach

    options = _options(args.metadata)
    configs = shipped()
    lines = list_tasks(configs, args.pattern, lambda config: reach(config, options))
    if not lines:
        near = get_close_matches(args.pattern, configs, n=3, cutoff=0.5)
        raise TrimixError(
            f"No task, group or tag is named {args.pattern!r}.",
            f"near it: {', '.join(near)}" if near else "list all of them: trimix tasks",
        )
    print(*lines, sep="\n")
    return 0


def _report(args: argparse.Namespace) -> int:
    from trimix_lm_eval import report

    return report.main(args.results, args.output, args.force)


def _export(args: argparse.Namespace) -> int:
    from trimix_lm_eval import export

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


def _leaderboard(args: argparse.Namespace) -> int:
    from trimix_lm_eval import leaderboard

    return leaderboard.main(args.folder, args.output, args.title)


def _options(given: Sequence[str]) -> dict[str, object]:
    """Read ``--metadata`` as lm-eval does: one JSON object, or ``key=value`` several times."""
    text = " ".join(given)
    if not text.startswith("{"):
        pairs = (part.partition("=") for word in given for part in word.split(","))
        return {key: value for key, _, value in pairs}
    try:
        return dict(json.loads(text))
    except ValueError as error:
        raise TrimixError(
            f"--metadata is not JSON: {error}.", 'write it as \'{"data_dir": "path"}\''
        ) from error


def _is_for_lm_eval(args: list[str]) -> bool:
    """Whether lm-eval is to parse this: its subcommand, or its older form without one."""
    if not args or args[0] in ("-h", "--help", "--version"):
        return False
    return args[0] in _PASSED_ON or args[0].startswith("-")


def _lm_eval(args: list[str]) -> int:
    """Register with lm-eval, then let its command line do the rest."""
    _autoload.install()
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm_eval", *([] if args[0] in _PASSED_ON else ["run"]), *args]
    cli_evaluate()
    return 0
