"""Results as plain rows, one for each number of a task or group: the CSV, and what all formats say.

The CSV is complete: the leaderboard is built from it, and reading it back gives the same rows.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trimix_lm_eval.analysis.export.origins import benchmark, family, sources_of
from trimix_lm_eval.analysis.results import MetricValue, Problem, Run, text_of
from trimix_lm_eval.analysis.results.scores import no_score
from trimix_lm_eval.fusion.weights import SOURCES
from trimix_lm_eval.utils import csv_text

#: How dates are written.
_ISO = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class ResultRow:
    """One number and what it depends on; the columns of the CSV, in order.

    Attributes:
        task: lm-eval's name of the task or group.
        language: In English; empty if unknown, ``several`` of a group.
        dataset: Id on the Hub; empty if it is not there.
        dataset_revision: Commit; empty if the results do not tell.
        split: Whose documents were scored.
        shots: Exemplars in each prompt; None of a group whose tasks differ.
        main: Whether this is the number that the task is known by.
        value: In the metric's own unit.
        policy: Name of the policy, of a corner its own.
        setting: The policy with its point or options, as tables call it.
        family: Of the models; ``other`` if no shipped config names them.
        precision: dtypes and quantizations in use.
        large_ins: Id or folder; empty if not used. So are the other three.
        large_ins_revision: Commit, or ``digest:`` of a folder. So are the other three.
        date: When it ran, ISO 8601 in UTC; empty if unknown.
        run: Name of the results file.
    """

    task: str
    version: str
    language: str
    dataset: str
    dataset_revision: str
    split: str
    shots: int | None
    metric: str
    filter: str
    main: bool
    value: float
    stderr: float | None
    higher_is_better: bool
    n: int
    policy: str
    setting: str
    family: str
    precision: str
    large_ins: str
    large_ins_revision: str
    small_cpt: str
    small_cpt_revision: str
    small_base: str
    small_base_revision: str
    large_base: str
    large_base_revision: str
    date: str
    lm_eval: str
    trimix: str
    run: str

    def sources(self) -> Iterator[tuple[str, str, str]]:
        """Role, id and revision of each source in use."""
        for role in SOURCES:
            if getattr(self, role):
                yield role, getattr(self, role), getattr(self, f"{role}_revision")


COLUMNS = tuple(field.name for field in dataclasses.fields(ResultRow))


def rows_of(runs: Sequence[Run]) -> list[ResultRow]:
    """All numbers of all runs, in the order of the files."""
    return [
        _row(run, score)
        for run in runs
        for scores in (*run.groups.values(), *run.scores.values())
        for score in scores
    ]


def _row(run: Run, score: MetricValue) -> ResultRow:
    data = benchmark(run, score.task)
    found = sources_of(run)
    of_sources = {}
    for role in SOURCES:
        of_sources[role] = found[role].name if role in found else ""
        of_sources[f"{role}_revision"] = found[role].revision if role in found else ""
    kinds = (" ".join(filter(None, (o.dtype, o.quantization))) for o in found.values())
    return ResultRow(
        task=score.task,
        version=data.version,
        language=data.language_name,
        dataset=data.dataset,
        dataset_revision=data.revision,
        split=data.split,
        shots=data.shots,
        metric=score.metric,
        filter=score.filter,
        main=score == run.main(score.task),
        value=score.value,
        stderr=score.stderr,
        higher_is_better=score.higher_is_better,
        n=score.n,
        policy=str(run.policy),
        setting=run.label,
        family=family(found),
        precision=", ".join(dict.fromkeys(filter(None, kinds))),
        date=iso(run.date),
        lm_eval=str(run.raw.get("lm_eval_version") or ""),
        trimix=str(run.trimix.get("version") or ""),
        run=run.path.stem,
        **of_sources,
    )


def iso(seconds: float | None) -> str:
    """A time in ISO 8601, UTC; empty if there is none."""
    if seconds is None:
        return ""
    at = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{at.year:04}{at.strftime(_ISO.removeprefix('%Y'))}"


def write_csv(rows: Sequence[ResultRow]) -> str:
    """The rows as CSV; floats keep all their digits."""
    return csv_text.text(COLUMNS, ([getattr(row, name) for name in COLUMNS] for row in rows))


def read_csv(path: Path) -> tuple[list[ResultRow], list[Problem]]:
    """Read exported rows back; a problem for the file or for each line that is none."""
    try:
        lines = list(csv.reader(io.StringIO(text_of(path), newline=""), strict=True))
    except ValueError as error:
        return [], [Problem(path, str(error))]
    except csv.Error as error:
        return [], [Problem(path, f"cannot be read: {error}")]
    if not lines or tuple(lines[0]) != COLUMNS:
        return [], [Problem(path, "is no CSV of `trimix export`: its first line differs")]
    rows, problems = [], []
    for number, line in enumerate(lines[1:], 2):
        try:
            rows.append(_parse([csv_text.plain(cell) for cell in line]))
        except ValueError as error:
            problems.append(Problem(path, f"line {number} is damaged: {error}"))
    return rows, problems


def _parse(line: list[str]) -> ResultRow:
    """One line; raises ValueError if it is damaged, or if its number is no score."""
    told: dict[str, Any] = dict(zip(COLUMNS, line, strict=True))
    told |= {
        "shots": int(told["shots"]) if told["shots"] else None,
        "n": int(told["n"]),
        "main": _truth(told["main"]),
        "higher_is_better": _truth(told["higher_is_better"]),
        "value": _finite(told["value"]),
        "stderr": _finite(told["stderr"]) if told["stderr"] else None,
    }
    if told["n"] <= 0 or (told["stderr"] or 0) < 0:
        raise ValueError("it has a number of documents or a standard error below 0, or no document")
    if why := no_score(told["metric"], told["value"]):
        raise ValueError(f"{told['metric']} of {told['task']} is {why}")
    if told["date"]:
        datetime.strptime(told["date"], _ISO)
    return ResultRow(**told)


def _truth(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(f"{text!r} is neither True nor False")
    return text == "True"


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number")
    return number
