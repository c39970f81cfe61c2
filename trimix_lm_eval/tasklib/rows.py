"""Files of a benchmark -> rows, each checked; and the order in which prompts show exemplars.

A file that is not as published is an error: a row that was lost or emptied on the way would change
a score without a trace, so counts are compared with the published ones and every field that a
prompt uses must be there.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from trimix_lm_eval.tasklib.places import Content
from trimix_lm_eval.utils.errors import TrimixError, quoted

_AGAIN = (
    "download the file again, or name another release with data_dir or data_revision in --metadata"
)
Row = dict[str, Any]


class Kind(NamedTuple):
    """What a field must be, in words and as a check of a value."""

    name: str
    holds: Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    try:
        return math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False


def _is_pair(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(value.get(code)) for code in ("zh", "en"))


TEXT = Kind("a text that is not empty", _is_text)
TEXTS = Kind(
    "a list of texts, none of them empty",
    lambda value: isinstance(value, list) and bool(value) and all(map(_is_text, value)),
)
NUMBER = Kind("a number", _is_number)
LETTER = Kind("one of A, B, C, D, E", lambda value: value in ("A", "B", "C", "D", "E"))
PAIR = Kind("a pair of texts named zh and en, none of them empty", _is_pair)
ID = Kind(
    "a number or a text",
    lambda value: _is_text(value) or (isinstance(value, int) and not isinstance(value, bool)),
)


def read_json(content: Content) -> list[Row]:
    """Read a JSON array of objects."""
    return _objects(_parse(_decode(content), content), content)


def read_jsonl(content: Content) -> list[Row]:
    """Read a JSON object per line; empty lines are skipped."""
    # Not splitlines(): a JSON string may contain the line separators of Unicode.
    lines = _decode(content).split("\n")
    return _objects([_parse(line, content) for line in lines if line.strip()], content)


def read_tsv(content: Content) -> list[Row]:
    """Read lines of tab-separated fields below a header.

    A field that contains quotation marks is quoted as in CSV, marks within it doubled.
    """
    # newline="": only the file's own line ends end a row.
    text = io.StringIO(_decode(content), newline="")
    try:
        found = [row for row in csv.reader(text, delimiter="\t", strict=True) if row]
    except csv.Error as error:
        raise TrimixError(f"{content.where} is not a TSV file: {error}.", _AGAIN) from error
    header, *lines = found or [[]]
    for number, fields in enumerate(lines, 1):
        if len(fields) != len(header):
            raise TrimixError(
                f"{content.where}: row {number} has {len(fields)} fields, its header has "
                f"{len(header)}.",
                _AGAIN,
            )
    return [dict(zip(header, fields, strict=True)) for fields in lines]


def check(
    rows: list[Row],
    content: Content,
    fields: Mapping[str, Kind],
    count: int,
    key: Sequence[str] = ("id",),
) -> list[Row]:
    """Return the rows if they are what was published.

    Args:
        rows: As read.
        content: Where they come from, for messages.
        fields: What each field must be. Other fields may be there too.
        count: How many rows were published.
        key: Fields that together tell the rows apart.
    """
    for number, row in enumerate(rows, 1):
        for name, kind in fields.items():
            if name not in row:
                raise TrimixError(
                    f"{content.where}: row {number} has no column {name!r}; its columns are "
                    f"{', '.join(map(str, row)) or 'none'}.",
                    f"{_AGAIN}; this one has another layout",
                )
            if not kind.holds(row[name]):
                raise TrimixError(
                    f"{content.where}: {name} of row {number} is {quoted(row[name])}, not "
                    f"{kind.name}.",
                    _AGAIN,
                )
    if len(rows) != count:
        raise TrimixError(
            f"{content.where} has {len(rows)} rows; {count} were published.",
            f"{_AGAIN}; scores on another set could not be compared",
        )
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        value = ", ".join(str(row[name]) for name in key)
        if value in seen:
            raise TrimixError(
                f"{content.where}: row {number} has {' and '.join(key)} {quoted(value)} again.",
                _AGAIN,
            )
        seen.add(value)
    return rows


def arrange(pool: list[Row], labels: list[str], per_label: int) -> list[Row]:
    """Order exemplars so that the first ``per_label * len(labels)`` hold `per_label` of each label.

    The pool, in file order, is put into rounds, each shuffled by a generator seeded with 0.
    """
    of_label = {label: [doc for doc in pool if doc["label"] == label] for label in labels}
    longest = max(map(len, of_label.values()), default=0)
    arranged: list[Row] = []
    for start in range(0, longest, per_label):
        turn = [doc for docs in of_label.values() for doc in docs[start : start + per_label]]
        random.Random(0).shuffle(turn)
        arranged += turn
    return arranged


def _decode(content: Content) -> str:
    if content.data.startswith(b"version https://git-lfs"):
        raise TrimixError(
            f"{content.where} is a pointer of Git LFS, not the file.",
            "run `git lfs pull` there, or download the file again",
        )
    try:
        return content.data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TrimixError(f"{content.where} is not UTF-8 (byte {error.start}).", _AGAIN) from error


def _parse(text: str, content: Content) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also of thousands of digits, or of brackets
        raise TrimixError(f"{content.where} is not JSON: {error}.", _AGAIN) from error


def _objects(rows: Any, content: Content) -> list[Row]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise TrimixError(f"{content.where} is not a list of JSON objects.", _AGAIN)
    return rows
