"""What came of a sweep, for reading: a row per variant, a column per task."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from trimix_lm_eval.analysis.results import Run, read
from trimix_lm_eval.utils.errors import TrimixError

#: More columns than a terminal shows are left to the report.
_COLUMNS = 6


def lines(written: Sequence[Path]) -> Iterator[str]:
    """The tables of all settings, and where the files are.

    Args:
        written: Results files, in the order in which they are shown.

    Raises:
        TrimixError: One cannot be read.
    """
    found, problems = read(written)
    for problem in problems:
        raise TrimixError(
            f"{problem.path} cannot be used: {problem.what}.",
            "delete its folder, and run the same command again",
        )
    runs = {run.path: run for run in found}
    by_setting: dict[str, list[Run]] = {}
    for run in (runs[path] for path in written if path in runs):
        by_setting.setdefault(run.trimix["sweep"]["setting"], []).append(run)
    for setting, mine in by_setting.items():
        if setting:
            yield f"\n{setting}"
        yield from _table(mine)
    folder = Path(os.path.commonpath([path.parents[1] for path in written]))
    yield f"{len(written)} results below {folder}; compare them with: trimix report {folder}"


def _table(runs: Sequence[Run]) -> Iterator[str]:
    """One setting's table."""
    tasks = list(dict.fromkeys(task for run in runs for task in run.scores))
    shown = tasks[:_COLUMNS]
    shared = os.path.commonprefix(shown).rpartition("_")[0] if len(shown) > 1 else ""
    rows = [["", *(task.removeprefix(f"{shared}_") for task in shown)]]
    rows.append(["", *(_metric(runs[0], task) for task in shown)])
    rows += [[run.label, *(_value(run, task) for task in shown)] for run in runs]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for name, *values in rows:
        cells = (value.rjust(width) for value, width in zip(values, widths[1:], strict=True))
        yield "  ".join([name.ljust(widths[0]), *cells]).rstrip()
    if len(tasks) > len(shown):
        yield f"and {len(tasks) - len(shown)} more tasks"


def _metric(run: Run, task: str) -> str:
    score = run.main(task)
    return f"{score.metric} {'↑' if score.higher_is_better else '↓'}" if score else ""


def _value(run: Run, task: str) -> str:
    score = run.main(task)
    if score is None:
        return "-"
    return f"{score.value:.3f}" if abs(score.value) < 10 else f"{score.value:.1f}"
