"""`trimix leaderboard`: a page that compares exported results, built from files alone.

A folder is searched for two kinds of files, so that both ways to a leaderboard are one command:

* CSV written by `trimix export --to csv`, as people send them in;
* results*.json of lm_eval, which have to pass the same rules as for an export (`refusals.py`).

What may not be shown is told and left out. The page is one file, ``index.html``: no server, no
network, all numbers in a table that is there without JavaScript, too. Imported by `cli`; imports
`analysis.export`, `analysis.results` and `utils`.

    entries.py                                    files -> entries, one for each task of a run
    page.py  page.html  style.css  script.js      entries -> the page
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trimix_lm_eval.analysis.export import refusals
from trimix_lm_eval.analysis.export.origins import relative
from trimix_lm_eval.analysis.leaderboard import entries, page
from trimix_lm_eval.utils import io, outputs
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.paths import printable


def main(folder: Path, output: Path, title: str = "TriMix leaderboard") -> int:
    """Build the page; returns 0.

    Args:
        folder: Searched, with all folders below, for exported CSV and results*.json.
        output: The folder to write ``index.html`` to; made if it is not there.
        title: The page's.

    Raises:
        TrimixError: There is nothing to show, or it cannot be written, or an ``index.html`` is
            there that no leaderboard wrote.
    """
    place = printable(str(folder))
    if not os.path.isdir(folder):
        raise TrimixError(f"{place} is no folder.", "name one with exported results")
    found, left_out = entries.collect(folder)
    for line in refusals.lines(left_out):
        print(f"left out: {line}", file=sys.stderr)
    if not found:
        raise TrimixError(
            f"{place} holds no results that may be shown"
            + (f" ({len(left_out)} were left out, see above)." if left_out else "."),
            "put CSV files of `trimix export --to csv` there, or complete results*.json",
        )
    path, text = output / "index.html", page.render(found, title)
    outputs.keep_inputs(
        [(relative(path), path)], [(relative(it), it) for it in entries.files(folder)]
    )
    outputs.keep_others({path: text}, page.COMMAND)
    io.write(path, text, "give another --output")
    print(f"wrote {relative(path)}: {len(found)} results; {len(left_out)} left out")
    return 0
