"""``trimix run``, ``ls`` and ``validate``: what belongs to lm-eval, handed on word for word."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trimix_lm_eval import _autoload

#: lm-eval's subcommands, none of which is parsed here, and what our --help says of them.
PASSED_ON = {
    "run": "evaluate models on tasks (lm-eval; the options are its own)",
    "ls": "list all tasks, lm-eval's and ours (lm-eval)",
    "validate": "check task configurations (lm-eval)",
}


def is_for_lm_eval(given: Sequence[str]) -> bool:
    """Whether lm-eval is to parse this: its subcommand, or its older form without one."""
    if not given or given[0] in ("-h", "--help", "--version"):
        return False
    return given[0] in PASSED_ON or given[0].startswith("-")


def pass_on(given: Sequence[str]) -> int:
    """Register with lm-eval, then let its command line do the rest; returns 0."""
    _autoload.install()
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm_eval", *([] if given[0] in PASSED_ON else ["run"]), *given]
    cli_evaluate()
    return 0
