"""``trimix run``, ``ls`` and ``validate``: what belongs to lm-eval, handed on word for word."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trimix_lm_eval import _autoload
from trimix_lm_eval.cli.arguments import Commands

#: lm-eval's subcommands, and what our --help says of them.
_PASSED_ON = {
    "run": "evaluate models on tasks (lm-eval; the options are its own)",
    "ls": "list all tasks, lm-eval's and ours (lm-eval)",
    "validate": "check task configurations (lm-eval)",
}


def add_parser(commands: Commands) -> None:
    """Name the subcommands in ``trimix --help``; none of them is parsed here."""
    for name, description in _PASSED_ON.items():
        commands.add_parser(name, help=description, add_help=False)


def is_for_lm_eval(given: Sequence[str]) -> bool:
    """Whether lm-eval is to parse this: its subcommand, or its older form without one.

    Args:
        given: The arguments without the program's name.
    """
    if not given or given[0] in ("-h", "--help", "--version"):
        return False
    return given[0] in _PASSED_ON or given[0].startswith("-")


def pass_on(given: Sequence[str]) -> int:
    """Register with lm-eval, then let its command line do the rest.

    Args:
        given: The arguments without the program's name.

    Returns:
        0.
    """
    _autoload.install()
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm_eval", *([] if given[0] in _PASSED_ON else ["run"]), *given]
    cli_evaluate()
    return 0
