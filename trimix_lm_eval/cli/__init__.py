"""The command ``trimix``, also ``python -m trimix_lm_eval``: one file a subcommand.

    run.py            run, ls, validate: handed to lm-eval's own command line word for word
    check.py          what would stop a run, before any weights are loaded
    tasks.py          the package's tasks, and whether their data can be reached
    sweep.py          many points and policies at once
    report.py         tables, tests and pictures from results
    explain.py        which source each token of a text owes its place to
    export.py         results as files to submit
    leaderboard.py    a page that compares exported results
    cpt.py            a small base model trained further on text of one language
    new_language.py   configs and tasks for a language, from text in it
    arguments.py      what several of them share

Here is argparse and printing only. Each file has its line of ``--help`` (``HELP``), its options
(``add_options``), and a ``run(args)`` that imports the module that does the job, so that ``--help``
imports neither torch nor lm-eval and answers at once. Imported by ``__main__`` and the console
script only; imports every other package.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from trimix_lm_eval import __version__
from trimix_lm_eval.cli import (
    check,
    cpt,
    explain,
    export,
    leaderboard,
    new_language,
    report,
    run,
    sweep,
    tasks,
)
from trimix_lm_eval.utils.errors import TrimixError, did_you_mean

_EPILOG = """\
examples:
  trimix run --model trimix --model_args pretrained=demo --tasks trimix_demo --limit 8
  trimix check --config my_run.yaml
  trimix tasks '*_choice'
  trimix sweep examples/sweep_demo.yaml    (needs SIB-200)
  trimix explain --model_args pretrained=demo --prompt 'The old king'
  trimix new-language swh_Latn --text swahili.txt

`trimix run …` is `lm_eval run …`, which knows --model trimix too once this package is installed.
"""

#: By the name that users write, in the order of ``--help``.
_SUBCOMMANDS = {
    "check": check,
    "tasks": tasks,
    "sweep": sweep,
    "report": report,
    "explain": explain,
    "export": export,
    "leaderboard": leaderboard,
    "cpt": cpt,
    "new-language": new_language,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0, 1 after an error that the user can fix, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        if run.is_for_lm_eval(given):
            return run.pass_on(given)
        args = _parser(given).parse_args(given)
        return int(args.run(args))
    except TrimixError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of our own subcommands; one that does not exist ends the program here."""
    parser = argparse.ArgumentParser(
        prog="trimix",
        description="Fuse several language models and evaluate them with lm-eval.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"trimix-lm-eval {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, description in run.PASSED_ON.items():
        commands.add_parser(name, help=description, add_help=False)
    for name, module in _SUBCOMMANDS.items():
        command = commands.add_parser(name, help=module.HELP, description=module.HELP.capitalize())
        module.add_options(command)
        command.set_defaults(run=module.run)
    name = given[0] if given else "-"
    if not name.startswith("-") and name not in commands.choices:
        near = did_you_mean(name, commands.choices)
        parser.error(f"Unknown command {name!r}.{near} accepted: {', '.join(commands.choices)}")
    return parser
