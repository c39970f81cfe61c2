"""The page and its Markdown: a report as words, for two templates that only lay them out.

Numbers come rounded from `views`, so that both say the same.
"""

from __future__ import annotations

import base64
import math
import re
from datetime import datetime, timezone
from pathlib import Path

from trimix_lm_eval import __version__
from trimix_lm_eval.analysis.report import bootstrap
from trimix_lm_eval.analysis.report.model import Part, ReportData
from trimix_lm_eval.analysis.report.numbers import Scale, minus, p_value
from trimix_lm_eval.analysis.report.paper import citations
from trimix_lm_eval.analysis.report.plane import Plane
from trimix_lm_eval.analysis.report.views import View, ending_views, gap_views, table_view
from trimix_lm_eval.analysis.results import Run
from trimix_lm_eval.fusion.weights import SOURCES
from trimix_lm_eval.utils import templates
from trimix_lm_eval.utils.paths import shown


def render(report: ReportData, template: str, generator: str = "") -> str:
    """Fill ``page.html.j2`` or ``page.md.j2``; `generator` is HTML's tag of the writing command."""
    from markupsafe import Markup

    values = {**_report(report), "generator": Markup(generator)}
    return templates.render(Path(__file__).with_name(template), _FILTERS, **values)


def markdown(text: object) -> str:
    """A text that Markdown shows as it is, also inside a table."""
    plain = " ".join(str(text).split())
    escaped = re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", plain)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_FILTERS = {
    "md": markdown,
    "base64": lambda data: base64.b64encode(data).decode(),
    "signed": Scale(1, 1, "").signed,
    "tenth": "{:.1f}".format,
}


def _report(report: ReportData) -> View:
    parts = [_part(report, number, part) for number, part in enumerate(report.parts, 1)]
    marked = sum(bool(run.variant) for run in report.runs)
    return {
        "version": __version__,
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "parts": parts,
        "runs": [(run, _told(run)) for run in report.runs],
        "marked": marked,
        "tasks": len({task for run in report.runs for task in run.scores}),
        "problems": report.problems,
        "citations": [" ".join(text.split()) for text in citations().values()],
        "resamples": f"{bootstrap.RESAMPLES:,}",
        "seed": bootstrap.SEED,
        "least": bootstrap.LEAST,
    }


def _part(report: ReportData, number: int, part: Part) -> View:
    system = part.system
    return {
        "id": f"s{number}",
        "title": part.title,
        "sources": [
            (role, list(dict.fromkeys(map(shown, paths))))
            for role in SOURCES
            if (paths := system.paths(role))
        ],
        "tables": [
            table_view(report, table, f"s{number}t{place}")
            for place, table in enumerate(part.tables)
        ],
        "figures": [
            {
                "task": plane.title,
                "circumstances": plane.circumstances,
                "text": _summary(plane),
                "not_comparable": "; ".join(plane.reasons),
                "pictures": drawn,
            }
            for plane, drawn in zip(part.planes, part.pictures, strict=True)
        ],
        "gaps": [view for table in part.tables for view in gap_views(table)],
        "endings": [
            view
            for table, found in zip(part.tables, part.endings, strict=True)
            for view in ending_views(table, found)
        ],
        "published": part.published,
        "superseded": [
            {"task": task, "old": report.number(old), "new": report.number(new)}
            for task, old, new in system.superseded
        ],
    }


def _summary(plane: Plane) -> str:
    unit, sentences = plane.scale, []
    if plane.oracle:
        best = next(p for p in plane.points if p.weights == plane.oracle)
        sentences.append(
            f"Oracle of {len(plane.points)} points: {plane.oracle.label()} with "
            f"{unit.text(best.cell.value)}{unit.unit}."
        )
    if plane.gammas:
        free = ", ".join(f"{gamma:g}" for gamma in plane.gammas)
        sentences.append(f"γ (large_base) is free: some points have {free} in place of α.")
    measured = {point.weights for point in plane.points}
    for choice in plane.choices:
        favourite = choice.counts[0][0]
        # A map may have no place for its ring: say why.
        unknown = "" if favourite in measured or not measured else ", not run as a point"
        sentences.append(
            f"{choice.row.title}: most often {favourite.label()} ({choice.share:.0%}{unknown})."
        )
    if plane.rho is not None:
        wanted = "negative" if plane.higher_is_better else "positive"
        sentences.append(
            f"Prompt NLL against score: Spearman ρ = {minus(plane.rho)} over "
            f"{len(plane.scattered)} points (p {_equals(plane.p)}); {wanted} if a lower NLL "
            "means a better score."
        )
    return " ".join(sentences)


def _equals(p: float | None) -> str:
    text = p_value(p if p is not None and math.isfinite(p) else 1.0)
    return text if text.startswith("<") else f"= {text}"


def _data(file: View) -> View:
    """A file of a benchmark: its place, which may be a folder, and its digest."""
    return {**file, "from": shown(str(file["from"]))} if "from" in file else file


def _told(run: Run) -> View:
    """What a results file says of a run, as words."""
    when = ""
    if run.date is not None:
        when = datetime.fromtimestamp(run.date, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    trimix = run.trimix
    sources = [
        {
            "role": role,
            "path": shown(str(it.get("path"))),
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
        "date": when,
        "model": f"{run.config.get('model')}: {shown(str(run.raw.get('model_name')))}",
        "sources": sources,
        "seed": trimix.get("seed", run.config.get("random_seed")),
        "versions": ", ".join(f"{name} {v}" for name, v in versions.items() if v),
        "data": {name: _data(file) for name, file in run.data.items()},
    }
