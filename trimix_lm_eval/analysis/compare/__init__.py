"""`trimix compare`: results files -> one table of policies by tasks, for a paper.

Reads JSON, no models. Imported by `cli`; imports `analysis.report`, `analysis.results`, `tasklib`,
`fusion` and `utils`. What a number, its resamples and an upper bound are is the report's; here is
what policies come to against each other.

statistics.py   ranks, and Holm's correction
rows.py         a row: its test against the baseline, its rank, the gap it closes, its cost
undecided.py    questions that a policy leaves open, and lm-eval answers
comparison.py   all rows of a system under one protocol
words.py        the same as tables of short texts, with what must be said of them
formats.py      these as Markdown, as LaTeX, for a terminal; all numbers as CSV
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from trimix_lm_eval.analysis.compare import formats
from trimix_lm_eval.analysis.compare.comparison import comparisons
from trimix_lm_eval.analysis.results import Problem, read_some
from trimix_lm_eval.utils import io, outputs
from trimix_lm_eval.utils.errors import TrimixError

_ELSEWHERE = "name another folder with --output"


class ComparedFiles(NamedTuple):
    """What a comparison wrote.

    Attributes:
        lines: The tables for a terminal.
        problems: Files that could not be used, or not all of them.
    """

    files: list[Path]
    lines: list[str]
    problems: list[Problem]


def write(places: Sequence[Path], output: Path, baseline: str | None) -> ComparedFiles:
    """Compare the policies of results files, or of folders with some.

    Args:
        places: Files or folders.
        output: The folder to write ``compare.md``, ``.tex`` and ``.csv`` to; those of an earlier
            comparison are replaced.
        baseline: The policy that all others are tested against, as tables name it; None is
            the usual one.

    Raises:
        TrimixError: No file is usable, no row is the baseline, or files of somebody's are in the
            way.
    """
    check(output)
    files = _files(output)
    runs, problems = read_some(places, "compared")
    outputs.keep_inputs([(str(f), f) for f in files], [(str(r.path), r.path) for r in runs])
    found = comparisons(runs, baseline)
    texts = (formats.markdown(found), formats.latex(found), formats.csv(found))
    for file, text in zip(files, texts, strict=True):
        # A half of a character, as names in files may hold, cannot be written.
        io.write(file, text.encode("utf-8", "replace"), _ELSEWHERE)
    return ComparedFiles(files, formats.terminal(found), problems)


def check(output: Path) -> None:
    """See that files can be written, and replace only those of an earlier comparison.

    Raises:
        TrimixError: They cannot, or one is there that no comparison wrote.
    """
    files = _files(output)
    for file in files:
        io.check_place(file, _ELSEWHERE)
    if not outputs.is_page_of(files[0], formats.COMMAND):
        for file in files:
            if os.path.lexists(file):
                raise TrimixError(
                    f"{file} is there already, and {formats.COMMAND} did not write it.",
                    "name another folder with --output, or move it away",
                )


def _files(output: Path) -> list[Path]:
    return [output / f"compare.{ending}" for ending in ("md", "tex", "csv")]
