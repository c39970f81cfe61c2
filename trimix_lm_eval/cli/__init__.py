"""The command ``trimix``, also ``python -m trimix_lm_eval``: one file a subcommand.

Here is argparse and printing only. Each file has its line of ``--help`` (``HELP``), its options
(``add_options``), and a ``run(args)`` that imports the module that does the job, so that ``--help``
imports neither torch nor lm-eval and answers at once. `run.py` hands ``run``, ``ls`` and
``validate`` to lm-eval's own command line word for word; `arguments.py` has what several files
share. What a terminal, pipe or file behind the standard streams cannot take is dealt with here for
all commands. Imported by ``__main__`` and the console script only; imports every other package.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from trimix_lm_eval import __version__
from trimix_lm_eval.cli import (
    check,
    compare,
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
  trimix compare --model_args pretrained=demo --tasks trimix_demo --limit 20
  trimix explain --model_args pretrained=demo --prompt 'The old king'
  trimix new-language swh_Latn --text swahili.txt

`trimix run …` is `lm_eval run …`, which knows --model trimix too once this package is installed.
"""

#: What the system says of what is full or gone: a disk, a user's share of one, a device.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)

#: By the name that users write, in the order of ``--help``.
_SUBCOMMANDS = {
    "check": check,
    "tasks": tasks,
    "sweep": sweep,
    "compare": compare,
    "report": report,
    "explain": explain,
    "export": export,
    "leaderboard": leaderboard,
    "cpt": cpt,
    "new-language": new_language,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, that of the process unless another is given.

    Returns:
        The exit code: 0, 1 after an error that the user can fix, 130 after Ctrl-C, 141 where nobody
        reads on what is printed, as in ``trimix tasks | head -1``.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    try:
        try:
            return _run(given)
        finally:  # what a buffer still holds fails here, and not when Python has ended
            sys.stdout.flush()
    except OSError as error:
        return _not_printed(error)


def _run(given: Sequence[str]) -> int:
    """Run one command, and say what is wrong in words."""
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


def _prepare_streams() -> None:
    """Make the standard streams take every text; what their encoding lacks, as hexadecimal.

    One that is closed (``>&-``) becomes a stream that goes nowhere, under the number that is free:
    a file that is opened later must not get it, for whatever is printed would end up in that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            mode = "w" if number else "r"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif number and isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # of what it holds already: tried again, and told
                stream.reconfigure(errors="backslashreplace")


def _not_printed(error: OSError) -> int:
    """End where something cannot be written any more that was to be printed; returns the exit code.

    Raises:
        OSError: It is about something else, and its traceback is wanted.
    """
    if not isinstance(error, BrokenPipeError):
        if error.errno not in _FULL or error.filename is not None:
            raise error
        with contextlib.suppress(OSError):  # stderr may be what is full
            print(f"error: The output cannot be written: {error.strerror}.", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would try once more at its end, and say so
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 141 if isinstance(error, BrokenPipeError) else 1


class _Parser(argparse.ArgumentParser):
    """Lets help that cannot be written fail as everything else does; argparse passes over it."""

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file or sys.stderr)


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of our own subcommands; one that does not exist ends the program here."""
    parser = _Parser(
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
