"""Values as users give them: texts and paths that can be written, shares, ratios, commits.

Each check takes the name under which the user wrote the value, and the value, as those of
`utils.validation` do.
"""

from __future__ import annotations

import re
import reprlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import regex

from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.validation import number
from trimix_lm_eval.utils.validation import text as plain_text

#: Line breaks and other control characters, and halves of surrogate pairs, as which Python reads
#: what is no UTF-8.
_NO_TEXT = regex.compile(r"[\p{Cc}\p{Cs}\p{Zl}\p{Zp}]")

#: What YAML reads as a text, though it is a number: it wants ``5.0e-2`` for ``5e-2``.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?\.?(nan|inf)", re.IGNORECASE)
#: Digits that tell ratios apart; with an exponent, a fraction would have billions.
_RATIO = re.compile(r"\d{1,20}(\.\d{0,20})?(/\d{1,20})?")


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


def share_or_file(key: str, value: Any) -> float | Path:
    """A file, or a share of the documents."""
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        return path(key, value)
    return number(key, value, 1e-6, 0.5, hint=", or name a file")


def revision(key: str, value: Any) -> str:
    """A branch, tag or commit; YAML reads some commits as numbers."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return text(key, str(value) if is_number else value)


def ratio(key: str, value: Any) -> Fraction:
    """Rows of the language for one of English: 4, 0.5, 4:1."""
    wrong = TrimixError(
        f"{key}={reprlib.repr(value)} is not a ratio.",
        "give the rows of the language for one of English, from 0.01 to 100: 4, or 4:1",
    )
    if isinstance(value, bool) or not isinstance(value, int | float | str | Fraction):
        raise wrong
    if isinstance(value, int | float) and not 0 <= value <= 1000:  # nor NaN
        raise wrong
    parts = [part.strip() for part in str(value).split(":")]
    if len(parts) > 2 or not all(map(_RATIO.fullmatch, parts)):
        raise wrong
    try:
        found = Fraction(parts[0]) / Fraction(parts[-1] if len(parts) == 2 else "1")
    except (ValueError, ZeroDivisionError) as error:
        raise wrong from error
    if not Fraction(1, 100) <= found <= 100:
        raise wrong
    return found
