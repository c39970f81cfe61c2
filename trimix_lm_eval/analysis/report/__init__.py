"""`trimix report`: results files -> a page, the same as Markdown, and CSV. Reads JSON, no models.

Imported by `cli`; imports `analysis.results`, `tasklib`, `fusion` and `utils`. Needs the extra
`report` (matplotlib, scipy).

systems.py     runs of the same models, one row for each way to weight them
layout.py      which tasks stand side by side, and which may be averaged
bootstrap.py  cells.py                  a number, its error and test; a table of them
tables.py      all tables, and that of lm-eval's own groups
oracles.py  plane.py   paper.py         the upper bounds; alpha and beta; published numbers
model.py       all of it together, and how generated texts ended
numbers.py  pictures.py  csv_files.py  views.py  page.py   rounded, drawn, as CSV, as words
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trimix_lm_eval.analysis.results import Problem, read_some
from trimix_lm_eval.utils import io, outputs
from trimix_lm_eval.utils.errors import TrimixError

if TYPE_CHECKING:
    from trimix_lm_eval.analysis.report.model import ReportData

#: Tells a folder that an earlier report wrote from one that holds something else.
_MARK = "report.html"
_COMMAND = "trimix report"
_ELSEWHERE = "name another folder with --output"


class Written(NamedTuple):
    """What a report wrote.

    Attributes:
        problems: Files that it could not use, or not all of.
        superseded: How many numbers newer runs replaced.
    """

    files: list[Path]
    problems: list[Problem]
    superseded: int


def write(places: Sequence[Path], output: Path, force: bool = False) -> Written:
    """Write a report of results files, or of folders with some.

    Args:
        places: Files or folders.
        output: The folder to write to; an earlier report there is replaced.
        force: Write into a folder that holds other files, too.

    Raises:
        TrimixError: No file is usable, a library is missing, or the folder holds something else
            or cannot be written to.
    """
    _need("matplotlib", "scipy")
    _check(output, force)
    runs, problems = read_some(places, "reported on")
    from trimix_lm_eval.analysis.report.model import assemble

    report = assemble(runs, problems)
    files = [(output / name, content) for name, content in _contents(report).items()]
    outputs.keep_inputs(
        [(str(path), path) for path, _ in files], [(str(r.path), r.path) for r in runs]
    )
    _replace(output, files)
    superseded = sum(len(part.system.superseded) for part in report.parts)
    return Written([path for path, _ in files], problems, superseded)


def _check(output: Path, force: bool) -> None:
    """See that no files of somebody's are mixed with a report, before anything is read."""
    is_folder = os.path.isdir(output)
    if os.path.exists(output) and not is_folder:
        raise TrimixError(f"{output} is a file.", "name a folder with --output")
    mine = force or outputs.is_page_of(output / _MARK, _COMMAND)
    if is_folder and not mine and _holds_files(output):
        raise TrimixError(
            f"{output} holds files, but no report.", "name another folder, or add --force"
        )


def _holds_files(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError as error:
        raise io.not_written(folder, error, _ELSEWHERE) from error


def _contents(report: ReportData) -> dict[str, bytes]:
    """All files of a report by their names in its folder; the page last, which marks it whole."""
    from trimix_lm_eval.analysis.report.csv_files import csv_files
    from trimix_lm_eval.analysis.report.page import render

    pictures = (picture for part in report.parts for drawn in part.pictures for picture in drawn)
    texts = {
        **csv_files(report),
        "report.md": render(report, "page.md.j2"),
        _MARK: render(report, "page.html.j2", outputs.generator(_COMMAND)),
    }
    pages = {name: text.encode() for name, text in texts.items()}
    return {f"pictures/{picture.name}": picture.png for picture in pictures} | pages


def _need(*libraries: str) -> None:
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise TrimixError(
            f"Reports need {' and '.join(missing)}.", "pip install 'trimix-lm-eval[report]'"
        )


def _replace(output: Path, files: Sequence[tuple[Path, bytes]]) -> None:
    """Write all files; of an earlier report, remove what this one has no counterpart for."""
    from trimix_lm_eval.analysis.report.csv_files import NAMES

    kept = {path for path, _ in files}
    if os.path.isfile(output / _MARK):
        before = [output / f"{name}.csv" for name in NAMES]
        before += (output / "pictures").glob("[0-9]*-[0-9]*-*.png")
        for old in before:
            if old not in kept:
                try:
                    old.unlink(missing_ok=True)
                except OSError as error:
                    raise io.not_written(old, error, _ELSEWHERE) from error
    for path, content in files:
        io.write(path, content, _ELSEWHERE)
