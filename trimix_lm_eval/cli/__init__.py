"""The command ``trimix``, also ``python -m trimix_lm_eval``.

Each subcommand is one small parser (`options`) and a few lines that import the module doing the
job, so that ``--help`` imports neither torch nor lm-eval and answers at once. What belongs to
lm-eval (``run``, ``ls``, ``validate``) is handed to its own command line word for word.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from trimix_lm_eval import _autoload
from trimix_lm_eval.cli import options
from trimix_lm_eval.cli.options import PASSED_ON
from trimix_lm_eval.utils.errors import TrimixError


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
        chosen = options.parser().parse_args(args)
        return _COMMANDS[chosen.command](chosen)
    except TrimixError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _check(args: argparse.Namespace) -> int:
    from trimix_lm_eval.harness import check

    model_args = ",".join(args.model_args) if args.model_args else None
    return check.main(args.config, model_args, _metadata(args.metadata))


def _explain(args: argparse.Namespace) -> int:
    from trimix_lm_eval.analysis.explain.command import Asked, main

    given = {name: getattr(args, name) for name in Asked._fields}
    if args.model_args:
        given["model_args"] = ",".join(args.model_args)
    return main(Asked(**given))


def _tasks(args: argparse.Namespace) -> int:
    from difflib import get_close_matches

    from trimix_lm_eval.tasklib.catalog import list_tasks, shipped
    from trimix_lm_eval.tasklib.reach import reach

    given = _metadata(args.metadata)
    configs = shipped()
    lines = list_tasks(configs, args.pattern, lambda config: reach(config, given))
    if not lines:
        near = get_close_matches(args.pattern, configs, n=3, cutoff=0.5)
        raise TrimixError(
            f"No task, group or tag is named {args.pattern!r}.",
            f"near it: {', '.join(near)}" if near else "list all of them: trimix tasks",
        )
    print(*lines, sep="\n")
    return 0


def _sweep(args: argparse.Namespace) -> int:
    from trimix_lm_eval import sweep

    return sweep.main(args.config, args.check)


def _report(args: argparse.Namespace) -> int:
    from trimix_lm_eval.analysis import report

    return report.main(args.results, args.output, args.force)


def _export(args: argparse.Namespace) -> int:
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


def _leaderboard(args: argparse.Namespace) -> int:
    from trimix_lm_eval.analysis import leaderboard

    return leaderboard.main(args.folder, args.output, args.title)


def _cpt(args: argparse.Namespace) -> int:
    from trimix_lm_eval.training import cpt

    return cpt.main(args.config)


def _new_language(args: argparse.Namespace) -> int:
    from trimix_lm_eval.training.new_language import Asked, main

    return main(Asked(**{name: getattr(args, name) for name in Asked._fields}))


def _metadata(given: Sequence[str]) -> dict[str, object]:
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


#: By the name that `options` gives each.
_COMMANDS = {
    "check": _check,
    "tasks": _tasks,
    "sweep": _sweep,
    "report": _report,
    "explain": _explain,
    "export": _export,
    "leaderboard": _leaderboard,
    "cpt": _cpt,
    "new-language": _new_language,
}


def _is_for_lm_eval(args: list[str]) -> bool:
    """Whether lm-eval is to parse this: its subcommand, or its older form without one."""
    if not args or args[0] in ("-h", "--help", "--version"):
        return False
    return args[0] in PASSED_ON or args[0].startswith("-")


def _lm_eval(args: list[str]) -> int:
    """Register with lm-eval, then let its command line do the rest."""
    _autoload.install()
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm_eval", *([] if args[0] in PASSED_ON else ["run"]), *args]
    cli_evaluate()
    return 0
