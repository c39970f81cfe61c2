"""Bytes -> lines. However long a line is, no more than a mebibyte of it is in memory.

A longer line is cut where words or sentences end. If there is no such place in a mebibyte, the
rest of the line is no text: it is passed over, and said to be.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import regex

LONGEST = 2**20  # bytes of a line that are held at once
LONGEST_ROW = 2**26  # a row of JSONL is parsed as a whole
#: What separates words or sentences. Not what URLs and base64 hold between letters.
BREAK = r"\s\p{Z}[\p{P}--[/\\_\-@#%&*]]"  # inside the brackets of a set
#: The fault of what has none.
NO_BREAK = "no break"

_LAST_BREAK = regex.compile(f"(?r)[{BREAK}]", regex.V1)
_BOM = b"\xef\xbb\xbf"
_SHOWN = 1000  # bytes of an unusable line


class Line(NamedTuple):
    """A line of a text, or of one row of a table.

    Attributes:
        number: Of the line in its file, or of the row; from 1.
        data: Its bytes without the line's end; of an unusable one the beginning.
        fault: Why it cannot be used; empty if nothing is known yet.
        size: Its bytes, if `data` is not all of it.
        begins: Whether a document begins with it; None where the text does not say.
    """

    number: int
    data: bytes
    fault: str = ""
    size: int = 0
    begins: bool | None = None


def of_text(stream: BinaryIO, longest: int = LONGEST) -> Iterator[Line]:
    """Yield the lines of a text, without the mark of byte order that may precede it."""
    number, rest, got = 1, b"", stream.readline(longest)
    if got.startswith(_BOM):
        rest, got = got[len(_BOM) :], b""
        if not rest.endswith(b"\n"):  # as much as there would be without the mark
            got = stream.readline(longest - len(rest))
    while got or rest:
        piece, rest = rest + got, b""
        if piece.endswith(b"\n") or len(piece) < longest:
            for part in piece.removesuffix(b"\n").removesuffix(b"\r").split(b"\r"):
                yield Line(number, part)
            number += 1
        elif at := _after_last_break(piece):
            for part in piece[:at].removesuffix(b"\r").split(b"\r"):
                yield Line(number, part)
            rest = piece[at:]
        else:
            size = len(piece) + _pass_over(stream)
            yield Line(number, piece[:_SHOWN], NO_BREAK, size)
            number += 1
        got = stream.readline(longest - len(rest))


def of_rows(stream: BinaryIO, field: str, longest: int = LONGEST_ROW) -> Iterator[Line]:
    """Yield the lines of the texts in a field of JSONL; what is no row is a line with a fault."""
    number = 0
    while got := stream.readline(longest):
        number += 1
        if len(got) == longest and not got.endswith(b"\n"):
            size = longest + _pass_over(stream)
            yield Line(number, got[:_SHOWN], f"a row of more than {longest:,} bytes", size, True)
            continue
        row = got.removeprefix(_BOM).strip()
        try:
            found = json.loads(row) if row else {field: ""}
        except UnicodeDecodeError:
            yield Line(number, row, begins=True)  # broken like a line of text
            continue
        except (ValueError, RecursionError):
            yield Line(number, row, "not JSON", begins=True)
            continue
        text = found.get(field) if isinstance(found, dict) else None
        if isinstance(text, str):
            yield from split(text, number)
        else:
            yield Line(number, row, f"no text in {field}", begins=True)


def split(text: str, number: int) -> Iterator[Line]:
    """Yield the lines of a row's text, which is a document of its own."""
    if not text:
        yield Line(number, b"", begins=True)
    stream = io.BytesIO(text.encode("utf-8", "surrogatepass"))
    for place, line in enumerate(of_text(stream)):
        yield line._replace(number=number, begins=place == 0)


def _after_last_break(piece: bytes) -> int:
    """The index after the last break, 0 if there is none."""
    text = piece.decode("utf-8", "surrogateescape")  # gives the same bytes back, broken or not
    found = _LAST_BREAK.search(text)
    return len(piece) - len(text[found.end() :].encode("utf-8", "surrogateescape")) if found else 0


def _pass_over(stream: BinaryIO) -> int:
    """Read to the end of the line; how many bytes there were before it."""
    passed = 0
    while got := stream.readline(LONGEST):
        if got.endswith(b"\n"):
            return passed + len(got) - 1
        passed += len(got)
    return passed
