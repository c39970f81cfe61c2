"""The page and its Markdown: a report as words, for two templates that only lay them out.

What is rounded is rounded here, once, so that both say the same.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from string import ascii_lowercase
from typing import Any

from trimix_lm_eval import __version__
from trimix_lm_eval.report import bootstrap
from trimix_lm_eval.report.cells import Cell
from trimix_lm_eval.report.frames import point_of
from trimix_lm_eval.report.model import Part, Report
from trimix_lm_eval.report.numbers import Scale, minus, p_value, scale, stars
from trimix_lm_eval.report.paper import citations
from trimix_lm_eval.report.systems import KINDS, Row
from trimix_lm_eval.report.tables import Table
from trimix_lm_eval.results import Run
from trimix_lm_eval.weights import SOURCES

#: Columns that stand side by side before a table goes on below.
_WIDTH = 8

View = dict[str, Any]


def render(report: Report, template: str, pictures: Mapping[str, str] | None = None) -> str:
    """Fill a template.

    Args:
        report: What to say.
        template: ``page.html.j2`` or ``page.md.j2``.
        pictures: For Markdown, the pictures' files by `picture_name`; HTML holds them.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("trimix_lm_eval", "report"),
        # Names of tasks and models come from files that anybody may have written.
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = markdown
    return environment.get_template(template).render(_report(report), files=pictures or {})


def markdown(text: object) -> str:
    """A text that Markdown shows as it is, also inside a table."""
    plain = " ".join(str(text).split())
    escaped = re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", plain)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def picture_name(part: int, plane: int, task: str, kind: str) -> str:
    """The file of a picture: unique, and safe whatever a task is called."""
    return f"{part}-{plane}-{re.sub(r'[^A-Za-z0-9-]+', '_', task)[:60]}-{kind}.png"


def _report(report: Report) -> View:
    parts = [_part(report, number, part) for number, part in enumerate(report.parts, 1)]
    marked = sum(bool(run.variant) for run in report.runs)
    return {
        "version": __version__,
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "parts": parts,
        "runs": [_run(number, run) for number, run in enumerate(report.runs, 1)],
        "marked": marked,
        "tasks": len({task for run in report.runs for task in run.scores}),
        "problems": [{"file": str(p.path), "what": p.what} for p in report.problems],
        "citations": [" ".join(text.split()) for text in citations().values()],
        "resamples": f"{bootstrap.RESAMPLES:,}",
        "seed": bootstrap.SEED,
    }


def _part(report: Report, number: int, part: Part) -> View:
    system = part.system
    return {
        "id": f"s{number}",
        "title": part.title,
        "sources": [(role, paths) for role in SOURCES if (paths := system.paths(role))],
        "tables": [
            _table(report, table, f"s{number}t{place}") for place, table in enumerate(part.tables)
        ],
        "figures": [
            {
                "task": plane.task,
                "text": _said(plane),
                "not_comparable": "; ".join(plane.reasons),
                "pictures": [
                    {
                        "alt": picture.alt,
                        "name": picture_name(number, place, plane.task, picture.kind),
                        "svg": base64.b64encode(picture.svg).decode(),
                    }
                    for picture in drawn
                ],
            }
            for place, (plane, drawn) in enumerate(zip(part.planes, part.pictures, strict=True), 1)
        ],
        "gaps": [view for place in range(len(part.tables)) if (view := _gaps(part, place))],
        "published": [
            {
                "row": it.row.title,
                "what": it.what,
                "ours": f"{it.ours:.1f}",
                "theirs": f"{it.published:.1f}",
                "difference": Scale(1, 1, "").signed(it.ours - it.published),
                "note": it.note,
                "citation": it.citation,
                "marked": bool(it.cell.reasons),
            }
            for it in part.published
        ],
        "superseded": [
            {"task": it.task, "old": report.number(it.old), "new": report.number(it.new)}
            for it in system.superseded
        ],
    }


# ---------------------------------------------------------------- tables


def _table(report: Report, table: Table, anchor: str) -> View:
    reasons = dict.fromkeys(
        "; ".join(cell.reasons)
        for _, cells in table.rows
        for cell in cells
        if cell and cell.reasons
    )
    letters = {reason: _letter(place) for place, reason in enumerate(reasons)}
    scales = [_scale(table, place) for place in range(len(table.columns))]
    best = [table.best(place) for place in range(len(table.columns))]
    columns = [
        {
            "title": column.title,
            "full": " ".join(column.tasks),
            "metric": f"{column.metric}{' ' + scales[i].unit if scales[i].unit else ''}",
            "arrow": "↑" if column.higher_is_better else "↓",
            "is_mean": column.is_mean,
        }
        for i, column in enumerate(table.columns)
    ]
    rows = [
        {
            **_head(report, row, cells),
            "cells": [
                cell and _cell(row, cell, scales[i], best[i], letters)
                for i, cell in enumerate(cells)
            ],
        }
        for row, cells in table.rows
    ]
    blocks = _blocks(columns)
    return {
        "id": anchor,
        "title": table.title,
        "name": "" if table.name.startswith("across ") else table.name,
        "note": table.note,
        "blocks": [
            {
                "columns": columns[block],
                "rows": [{**row, "cells": row["cells"][block]} for row in rows],
            }
            for block in blocks
        ],
        "reasons": [{"letter": letter, "text": text} for text, letter in letters.items()],
        "details": list(_details(table, scales)),
    }


def _blocks(columns: list[View]) -> list[slice]:
    """Where a wide table is cut: before its means, then by width."""
    tasks = sum(not column["is_mean"] for column in columns)
    edges = [0, len(columns)] if len(columns) <= _WIDTH else sorted({0, tasks, len(columns)})
    return [
        slice(at, min(at + _WIDTH, stop))
        for start, stop in zip(edges, edges[1:], strict=False)
        for at in range(start, stop, _WIDTH)
    ]


def _head(report: Report, row: Row, cells: tuple[Cell | None, ...]) -> View:
    runs = dict.fromkeys(run for cell in cells if cell for run in cell.runs)
    numbers = sorted(report.number(run) for run in runs)
    first = KINDS.index(row.kind)
    return {
        "title": row.title,
        "kind": row.kind,
        "group": "single" if first < KINDS.index("proxy") else row.kind,
        "small": ", ".join(text for text in (row.detail, row.variant) if text),
        "models": list(_models(row, list(runs))),
        "runs": numbers,
    }


def _models(row: Row, runs: list[Run]) -> Iterator[str]:
    """Of a single model, what it is."""
    if row.kind == "single" and runs:
        role = str(runs[0].policy)
        paths = [str((run.sources.get(role) or {}).get("path") or "") for run in runs]
        yield from dict.fromkeys(path.rstrip("/").rsplit("/", 1)[-1] for path in paths if path)


def _cell(
    row: Row, cell: Cell, unit: Scale, best: float | None, letters: Mapping[str, str]
) -> View:
    point = point_of(cell) if row.kind == "oracle" else ""
    return {
        "value": unit.text(cell.value),
        "stderr": "" if cell.stderr is None else unit.text(cell.stderr),
        "stderr_from": cell.stderr_from,
        "n": " + ".join(map(str, dict.fromkeys(cell.n))) if len(set(cell.n)) == 1 else sum(cell.n),
        "delta": _delta(cell, unit),
        "better": cell.better,
        "worse": cell.delta not in (None, 0) and not cell.better,
        "best": row.kind != "oracle" and best is not None and cell.value == best,
        "reference": cell.is_reference,
        "letter": letters.get("; ".join(cell.reasons), ""),
        "point": point,
        "exact": f"{cell.value!r}",
    }


def _delta(cell: Cell, unit: Scale) -> str:
    """The difference to the best single model, with its stars; ° where it was not tested."""
    if cell.delta is None:
        return ""
    return unit.signed(cell.delta) + (stars(cell.test.p) if cell.test else "°")


def _details(table: Table, scales: list[Scale]) -> Iterator[View]:
    for i, column in enumerate(table.columns):
        for row, cells in table.rows:
            cell = cells[i]
            if cell is None or cell.is_reference:
                continue
            test, unit = cell.test, scales[i]
            yield {
                "column": column.title,
                "row": row.title,
                "small": ", ".join(text for text in (row.detail, row.variant) if text),
                "reference": cell.reference.title if cell.reference else "",
                "n": sum(cell.n),
                "delta": "" if cell.delta is None else unit.signed(cell.delta),
                "interval": f"{unit.signed(test.low)} to {unit.signed(test.high)}" if test else "",
                "p": p_value(test.p) if test else "",
                "note": cell.why_not,
            }


def _scale(table: Table, column: int) -> Scale:
    values = [cells[column].value for _, cells in table.rows if cells[column] is not None]  # type: ignore[union-attr]
    return scale(table.columns[column].metric, values)


def _letter(place: int) -> str:
    letters = ascii_lowercase
    return letters[place] if place < 26 else letters[place // 26 - 1] + letters[place % 26]


def _gaps(part: Part, place: int) -> View | None:
    """What rows leave to the oracle: a table like the one it belongs to."""
    table, found = part.tables[place], part.gaps[place]
    by = {(gap.row.key, gap.column): gap for gap in found}
    columns = [c for c in table.columns if any((row.key, c.title) in by for row, _ in table.rows)]
    rows = [row for row, _ in table.rows if any((row.key, c.title) in by for c in columns)]
    if not found:
        return None
    units = {c.title: _scale(table, table.columns.index(c)) for c in columns}
    return {
        "title": table.title,
        "columns": [c.title for c in columns],
        "rows": [
            {
                "title": row.title,
                "small": row.variant,
                "cells": [
                    units[c.title].signed(gap.gap) if (gap := by.get((row.key, c.title))) else ""
                    for c in columns
                ],
            }
            for row in rows
        ],
    }


def _said(plane: Any) -> str:
    """The pictures' numbers in words."""
    unit = scale(plane.metric, [point.cell.value for point in plane.points])
    said = []
    if plane.oracle:
        best = next(p for p in plane.points if p.weights == plane.oracle)
        said.append(
            f"Oracle of {len(plane.points)} points: {plane.oracle.label()} with "
            f"{unit.text(best.cell.value)}{unit.unit}."
        )
    for choice in plane.choices:
        said.append(
            f"{choice.row.title}: mostly {choice.counts[0][0].label()} ({choice.share:.0%})."
        )
    if plane.rho is not None:
        wanted = "negative" if plane.higher_is_better else "positive"
        said.append(
            f"Prompt NLL against score: Spearman ρ = {minus(plane.rho)} over "
            f"{len(plane.scattered)} points (p {_equals(plane.p)}); {wanted} if a lower NLL "
            "means a better score."
        )
    return " ".join(said)


def _equals(p: float | None) -> str:
    text = p_value(p if p is not None and math.isfinite(p) else 1.0)
    return text if text.startswith("<") else f"= {text}"


# ---------------------------------------------------------------- provenance


def _run(number: int, run: Run) -> View:
    date = run.raw.get("date")
    when = ""
    if isinstance(date, (int, float)) and 0 < date < 1e11:
        when = datetime.fromtimestamp(date, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    trimix = run.trimix
    sources = [
        {
            "role": role,
            "path": it.get("path"),
            "revision": it.get("revision"),
            "commit": it.get("commit"),
            "digest": it.get("digest"),
            "dtype": ", ".join(str(x) for x in (it.get("dtype"), it.get("quantization")) if x),
        }
        for role, it in run.sources.items()
    ]
    versions = {
        "trimix-lm-eval": trimix.get("version"),
        "lm-eval": run.raw.get("lm_eval_version"),
        "transformers": run.raw.get("transformers_version"),
    }
    return {
        "number": number,
        "label": run.label,
        "variant": run.variant,
        "file": str(run.path),
        "date": when,
        "model": f"{run.config.get('model')}: {run.raw.get('model_name')}",
        "sources": sources,
        "weights": run.weights.label() if run.weights else "",
        "task_points": _object(trimix.get("task_points")),
        "seed": trimix.get("seed", run.config.get("random_seed")),
        "versions": ", ".join(f"{name} {v}" for name, v in versions.items() if v),
        "data": _object(trimix.get("data")),
        "tasks": list(run.scores),
    }


def _object(value: object) -> View:
    """A part of a file that should be an object, and is left out if it is none."""
    return value if isinstance(value, dict) else {}
