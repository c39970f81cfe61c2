"""Texts and paths as users give them, checked for what files and pages cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import regex

from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.validation import text as plain_text

#: Line breaks and other control characters, and halves of surrogate pairs, as which Python reads
#: what is no UTF-8.
_NO_TEXT = regex.compile(r"[\p{Cc}\p{Cs}\p{Zl}\p{Zp}]")


def text(key: str, value: Any) -> str:
    """A text that is not empty, of one line, all of whose characters can be written.

    Args:
        key: What the user knows it by.
        value: The text.

    Raises:
        TrimixError: It is something else.
    """
    given = plain_text(key, value)
    found = _NO_TEXT.search(given)
    if found:
        raise TrimixError(
            f"{key}={given!r} has {found[0]!r} in it.",
            "give one line of characters in UTF-8, without control characters",
        )
    return given


def writable(given: str) -> str:
    """A text, escaped where `text` would refuse it: names of files may be any bytes."""
    escaped: str = _NO_TEXT.sub(lambda found: found[0].encode("unicode_escape").decode(), given)
    return escaped


def path(key: str, value: Any) -> Path:
    """A path that the system can look for; whether there is something is left open.

    Args:
        key: What the user knows it by.
        value: The path; ``~`` is the home folder.

    Raises:
        TrimixError: It is no path.
    """
    given = text(key, value)
    try:
        found = Path(given).expanduser()
        found.exists()
    except (OSError, RuntimeError) as error:  # the latter of a user that there is not
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise TrimixError(
            f"{key}: {_short(given)} is no path here: {reason}.", "correct the path"
        ) from error
    return found


def absolute(key: str, value: Any) -> Path:
    """A path from the root of the file system, links followed; else as `path`.

    Raises:
        TrimixError: It is no path, or relative to a folder that is gone.
    """
    found = path(key, value)
    try:
        return found.resolve()
    except (OSError, RuntimeError) as error:  # the latter of links in a circle
        raise TrimixError(
            f"{key}: {found} leads nowhere: {error}.", "give another path, or change to a folder"
        ) from error


def _short(given: str) -> str:
    return given if len(given) <= 200 else f"{given[:200]}…"
