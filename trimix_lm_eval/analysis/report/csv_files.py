"""The tables as CSV: one line for each number, unrounded, with the files that it comes from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from trimix_lm_eval.analysis.report.model import Ending, Part, ReportData
from trimix_lm_eval.analysis.report.plane import gaps
from trimix_lm_eval.utils import csv_text
from trimix_lm_eval.utils.paths import shown

Line = dict[str, Any]


def csv_files(report: ReportData) -> dict[str, str]:
    """The tables as CSV by name of file, without those that would be empty."""
    found = {
        name: [{"system": part.title, **line} for part in report.parts for line in lines(part)]
        for name, lines in _OF_PARTS.items()
    }
    found["runs"] = list(_runs(report))
    found["problems"] = [{"file": p.file, "problem": p.what} for p in report.problems]
    return {f"{name}.csv": _text(lines) for name, lines in found.items() if lines}


def _text(lines: Sequence[Line]) -> str:
    """One table; what is no number is left empty."""
    cells = (
        [None if isinstance(it, float) and math.isnan(it) else it for it in line.values()]
        for line in lines
    )
    return csv_text.text(list(lines[0]), cells)


def _scores(part: Part) -> Iterator[Line]:
    for table in part.tables:
        for row, cells in table.rows:
            for column, cell in zip(table.columns, cells, strict=True):
                if cell is None:
                    continue
                test = cell.test
                yield {
                    "table": table.name,
                    "row": row.key,
                    "kind": row.kind,
                    "oracle": row.kind == "oracle",
                    "column": column.title,
                    "tasks": " ".join(column.tasks),
                    "metric": cell.metric,
                    "filter": cell.filter,
                    "higher_is_better": cell.higher_is_better,
                    "value": cell.value,
                    "stderr": cell.stderr,
                    "stderr_from": cell.stderr_from,
                    "n": sum(cell.n) or None,
                    "of": sum(cell.of) or None,
                    "point": cell.point,
                    "reference": cell.reference.key if cell.reference else None,
                    "delta": cell.delta,
                    "ci_low": test.low if test else None,
                    "ci_high": test.high if test else None,
                    "p": test.p if test else None,
                    "significance": cell.why_not or ("reference" if cell.is_reference else ""),
                    "not_comparable": "; ".join(cell.reasons),
                    "files": "; ".join(run.file for run in cell.runs),
                }


def _points(part: Part) -> Iterator[Line]:
    for plane in part.planes:
        for weights, cell, nll in plane.points:
            yield {
                "task": plane.task,
                "metric": plane.metric,
                "filter": plane.filter,
                "alpha": weights.alpha,
                "beta": weights.beta,
                "gamma": weights.alpha if weights.gamma is None else weights.gamma,
                "value": cell.value,
                "n": cell.n[0] or None,
                "prompt_nll": nll,
                "oracle": weights == plane.oracle,
                "not_comparable": "; ".join(cell.reasons),
                "file": cell.runs[0].file,
            }


def _choices(part: Part) -> Iterator[Line]:
    told: set[str] = set()
    for plane in part.planes:
        # Filters of one task have a plane each, and the choices in common.
        for row, counts in plane.choices if plane.task not in told else ():
            for weights, count in counts:
                yield {
                    "task": plane.task,
                    "row": row.key,
                    "point": weights.label(),
                    "count": count,
                    "file": row.runs[plane.task].file,
                }
        told.add(plane.task)


def _gaps(part: Part) -> Iterator[Line]:
    for table in part.tables:
        for row, column, cell, oracle, gap in gaps(table):
            yield {
                "table": table.name,
                "row": row.key,
                "column": column,
                "metric": cell.metric,
                "value": cell.value,
                "oracle": oracle.value,
                "gap": gap,
                "not_comparable": "; ".join(cell.reasons),
            }


def _endings(part: Part) -> Iterator[Line]:
    # What filters make of a text changes nothing of its end.
    told: dict[tuple[str, str], Ending] = {}
    for it in chain.from_iterable(part.endings):
        told.setdefault((it.task, it.row.key), it)
    for it in told.values():
        yield {
            "task": it.task,
            "row": it.row.key,
            "texts": sum(it.counts.values()),
            **{reason: it.counts.get(reason, 0) for reason in ("stop", "eos", "length")},
            "length_share": it.length_share,
            "file": it.row.runs[it.task].file,
        }


def _published(part: Part) -> Iterator[Line]:
    for it in part.published:
        yield {
            "row": it.row.key,
            "what": it.what,
            "ours": it.ours,
            "published": it.published,
            "difference": it.ours - it.published,
            "note": it.note,
            "citation": it.citation,
            "files": "; ".join(run.file for run in it.cell.runs),
        }


#: The tables that each system may have.
_OF_PARTS = {
    "scores": _scores,
    "points": _points,
    "choices": _choices,
    "gaps": _gaps,
    "endings": _endings,
    "published": _published,
}
#: All tables that there may be.
NAMES = (*_OF_PARTS, "runs", "problems")


def _runs(report: ReportData) -> Iterator[Line]:
    for number, run in enumerate(report.runs, 1):
        yield {
            "run": number,
            "row": run.label,
            "file": run.file,
            "date": run.date,
            "not_comparable": run.variant,
            "tasks": " ".join(run.scores),
            "model": run.config.get("model"),
            "sources": "; ".join(_source(role, it) for role, it in run.sources.items()),
            "lm_eval": run.raw.get("lm_eval_version"),
            "transformers": run.raw.get("transformers_version"),
        }


def _source(role: str, told: Line) -> str:
    version = told.get("commit") or told.get("digest") or ""
    return f"{role} {shown(str(told.get('path')))} {version}".strip()
