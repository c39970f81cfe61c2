"""Values as users give them: texts and paths that can be written, places of text, shares, ratios.

Each check takes the name under which the user wrote the value, and the value, as those of
`utils.validation` do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import regex

from trimix_lm_eval.utils.errors import TrimixError, quoted, unknown
from trimix_lm_eval.utils.validation import number
from trimix_lm_eval.utils.validation import text as plain_text

#: Line breaks and other control characters, and halves of surrogate pairs, as which Python reads
#: what is no UTF-8.
_NO_TEXT = regex.compile(r"[\p{Cc}\p{Cs}\p{Zl}\p{Zp}]")

#: What YAML reads as a text, though it is a number: it wants ``5.0e-2`` for ``5e-2``.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?\.?(nan|inf)", re.IGNORECASE)
#: Digits that tell ratios apart; with an exponent, a fraction would have billions.
_RATIO = re.compile(r"\d{1,20}(\.\d{0,20})?(/\d{1,20})?")

#: What a place of text may have, by its kind.
_KEYS = {
    "file": ("file", "field"),
    "hub": ("hub", "config", "split", "field", "revision", "streaming"),
}


def text(key: str, value: Any) -> str:
    """A text that is not empty, of one line, all of whose characters can be written."""
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
    """A path that the system can look for, ``~`` expanded; there may be nothing yet."""
    given = text(key, value)
    try:
        found = Path(given).expanduser()
        found.exists()
    except (OSError, RuntimeError) as error:  # the latter of a user that there is not
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise TrimixError(
            f"{key}: {given:.200} is no path here: {reason}.", "correct the path"
        ) from error
    return found


def absolute(key: str, value: Any) -> Path:
    """A path from the root of the file system, links followed; else as `path`."""
    found = path(key, value)
    try:
        return found.resolve()
    except (OSError, RuntimeError) as error:  # the latter of links in a circle
        raise TrimixError(
            f"{key}: {found} leads nowhere: {error}.", "give another path, or change to a folder"
        ) from error


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
        f"{key}={quoted(value)} is not a ratio.",
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


class TextPlace(NamedTuple):
    """A place of text: a file, folder, pattern or address; or a data set on the Hub.

    Without a ``field`` the config's ``text_field`` is the column that holds the text. Where
    ``streaming``, rows are used as they arrive, and no file is kept.
    """

    where: str
    hub: bool = False
    config: str | None = None
    split: str = "train"
    field: str | None = None
    revision: str = "main"
    streaming: bool = True

    def plain(self) -> Any:
        """As in YAML."""
        kind = "hub" if self.hub else "file"
        given = {**self._asdict(), kind: self.where}
        usual = TextPlace("")._asdict()
        kept = {k: given[k] for k in _KEYS[kind] if k == kind or given[k] != usual[k]}
        return self.where if list(kept) == ["file"] else kept


def read_places(key: str, value: Any) -> tuple[TextPlace, ...]:
    """Read what YAML says of places: texts, or mappings with ``file`` or ``hub``; one or a list."""
    return tuple(_place(key, one) for one in (value if isinstance(value, list) else [value]))


def _place(key: str, value: Any) -> TextPlace:
    if isinstance(value, str) and value:
        return TextPlace(text(key, value))
    kinds = [kind for kind in _KEYS if isinstance(value, Mapping) and kind in value]
    if len(kinds) != 1:
        raise TrimixError(
            f"{key} has {quoted(value)} in it.",
            "write paths, or mappings such as {hub: owner/name, config: ug} or "
            "{file: rows.jsonl, field: content}",
        )
    for name in value:
        if name not in _KEYS[kinds[0]]:
            raise unknown(f"key of a place in {key}", str(name), _KEYS[kinds[0]])
    for name, one in value.items():
        if not isinstance(one, bool if name == "streaming" else str):
            hint = "write true or false" if name == "streaming" else "write it as a text"
            raise TrimixError(f"{name} of a place in {key} is {quoted(one)}.", hint)
        if name != "streaming":
            text(f"{name} of a place in {key}", one)
    given = {name: one for name, one in value.items() if name not in _KEYS}
    return TextPlace(value[kinds[0]], kinds[0] == "hub", **given)
