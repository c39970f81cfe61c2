"""``trimix run``, ``ls`` and ``validate``: what belongs to lm-eval, handed on word for word."""

from __future__ import annotations

import argparse
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
    """Register with lm-eval, then let its command line do the rest; returns 0.

    Raises:
        TrimixError: A config of ours holds what lm-eval would end in a traceback for.
    """
    _autoload.install()
    _check_config(given)
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm_eval", *([] if given[0] in PASSED_ON else ["run"]), *given]
    cli_evaluate()
    return 0


def _check_config(given: Sequence[str]) -> None:
    """Check the file after ``--config``, if it is of a run of ours."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-C")
    path = parser.parse_known_args(list(given))[0].config
    if path is None:
        return
    from trimix_lm_eval.loading import run_config

    run = run_config.load(path)
    if run.get("model") == "trimix":
        run_config.configured(run, path)
