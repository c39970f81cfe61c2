"""Where the shipped files are (tasks, model configurations, the demo trio), and what to call files.

In a wheel they lie inside the package. In a checkout (and so in an editable install, which does
not copy them) ``tasks/`` and ``model_configs/`` lie next to it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePath

from trimix_lm_eval.utils import validation
from trimix_lm_eval.utils.errors import TrimixError, quoted

_PACKAGE = Path(__file__).resolve().parent.parent
#: The folder of a model of the trio, on whatever machine and in whatever version.
_OF_DEMO = re.compile(r".*/trimix_lm_eval/(?:loading/)?demo/(\w+)/?")
#: What drives a terminal.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_WITH_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def tasks_dir() -> Path:
    """The folder of lm-eval task YAML."""
    return _shipped("tasks")


def model_configs_dir() -> Path:
    """The folder of ready ``lm_eval run --config`` files."""
    return _shipped("model_configs")


def demo_dir() -> Path:
    """The folder of the embedded demo models, one subfolder per source."""
    return _PACKAGE / "loading" / "demo"


def expanded(name: str, given: object) -> Path:
    """A path that a user wrote, with ``~`` and ``~user`` replaced where there is such a home.

    Raises:
        TrimixError: No file can have it, as with a null byte in it.
    """
    text = validation.as_text(name, given)
    try:
        possible = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise TrimixError(
            f"{name}={quoted(text)} is not a path: it holds a character that no file's name has.",
            "correct the path",
        )
    return Path(os.path.expanduser(text))


def named(path: str) -> str:
    """What to call a Hub id or a folder, of any machine: one of the trio is ``demo/large_ins``."""
    found = _OF_DEMO.fullmatch(path.replace("\\", "/"))
    return f"demo/{found[1]}" if found else path


def shown(path: str | Path, parts: int = 2) -> str:
    """A Hub id, folder or file as pages and tables show it, which go to other people.

    Hub ids and relative paths stay as they are. Of a path outside of the current folder so many of
    its last parts are left at most, behind ``…/``.
    """
    text = named(printable(str(path)))
    if not (text.startswith(("/", "~", "\\")) or _WITH_DRIVE.match(text)):
        return text
    try:
        return PurePath(text).relative_to(Path.cwd()).as_posix()
    except (OSError, ValueError):  # the former where the current folder is gone
        last = [part for part in re.split(r"[\\/]", text) if part]
        return "/".join(["…", *last[max(1, len(last) - parts) :]])


def printable(text: str) -> str:
    """A text that is safe in a message: what is no character, or drives a terminal, becomes ``?``.

    Names of files may hold half characters (where they are not UTF-8), line ends and escapes.
    """
    return _CONTROL.sub("?", text.encode("utf-8", "replace").decode())


def _shipped(name: str) -> Path:
    """Return a folder inside the installed package, or else next to it in the checkout."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
