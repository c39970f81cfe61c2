"""Write CSV that spreadsheets show and do not run.

A cell that starts with ``=``, ``+``, ``-`` or ``@``, or with a tab or a line end before one, is a
formula to a spreadsheet, and names of tasks and models come from files that anybody may have
written. As is customary (OWASP, "CSV Injection"), an apostrophe stands in front of such a text;
reading takes it away again. Numbers stay as they are.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

#: Full-width signs are the same to some spreadsheets. Apostrophes in front let `plain` undo
#: `escaped` for every text.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def text(columns: Sequence[str], lines: Iterable[Iterable[Any]]) -> str:
    """A table as CSV; None is an empty cell, floats keep all their digits."""
    return "".join([_line(columns), *(_line(line) for line in lines)])


def _line(cells: Iterable[Any]) -> str:
    made = io.StringIO()
    # Of the line ends in a cell, csv quotes those only that its own line end has.
    writer = csv.writer(made, lineterminator="\r\n")
    writer.writerow([escaped(_whole(it)) if isinstance(it, str) else it for it in cells])
    return f"{made.getvalue().removesuffix(writer.dialect.lineterminator)}\n"


def _whole(cell: str) -> str:
    """A text of characters that a CSV file can hold; question marks stand for the others.

    These are halves of characters, as names of files may have, and NUL, which Python's csv neither
    writes nor reads before 3.11.
    """
    return cell.replace("\0", "?").encode("utf-8", "replace").decode()


def escaped(cell: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{cell}" if _is_formula(cell) else cell


def plain(cell: str) -> str:
    """The text that `escaped` made a cell from."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell) else cell


def _is_formula(cell: str) -> bool:
    if not _FORMULA.match(cell):
        return False
    try:
        float(cell.lstrip("'"))
    except ValueError:
        return True
    return False
