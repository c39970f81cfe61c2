"""Entries -> one HTML page with its style and script inside.

Every text in it comes from files that anybody may have written: Jinja2 escapes them all, links are
made from Hub ids at commits only, and the page's own policy forbids any request to anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trimix_lm_eval.analysis.export.origins import HUB, hub_url, short
from trimix_lm_eval.analysis.export.table import ResultRow
from trimix_lm_eval.analysis.leaderboard.entries import Entry
from trimix_lm_eval.utils import outputs, templates

if TYPE_CHECKING:
    from markupsafe import Markup

#: Which command the page says that it is of.
COMMAND = "trimix leaderboard"

_HERE = Path(__file__).parent


class LeaderboardColumn(NamedTuple):
    """A column: its key in the address (``#sort=key``), its title, whether it sorts as a number."""

    key: str
    title: str
    number: bool = False


COLUMNS = (
    LeaderboardColumn("task", "Task"),
    LeaderboardColumn("policy", "Policy"),
    LeaderboardColumn("score", "Score", True),
    LeaderboardColumn("stderr", "± error", True),
    LeaderboardColumn("n", "n", True),
    LeaderboardColumn("metric", "Metric"),
    LeaderboardColumn("language", "Language"),
    LeaderboardColumn("family", "Family"),
    LeaderboardColumn("shots", "Shots", True),
    LeaderboardColumn("date", "Date"),
    LeaderboardColumn("sources", "Sources"),
)

#: What can be filtered, by the key in the address.
FILTERS = {"lang": "language", "task": "task", "family": "family", "policy": "policy"}


def render(entries: Sequence[Entry], title: str) -> str:
    """The page of some entries, in the order in which they stand without JavaScript."""
    from markupsafe import Markup

    style, script = (
        Markup((_HERE / name).read_text(encoding="utf-8")) for name in ("style.css", "script.js")
    )
    choices = {
        key: (name, sorted({shown(entry.row, name) for entry in entries}))
        for key, name in FILTERS.items()
    }
    dates = sorted(entry.row.date for entry in entries if entry.row.date)
    return templates.render(
        _HERE / "page.html",
        {"number": number, "short": short, "breakable": breakable},
        hub_url=hub_url,
        data_url=data_url,
        title=title,
        generator=Markup(outputs.generator(COMMAND)),
        entries=entries,
        columns=COLUMNS,
        filters=choices,
        newest=dates[-1][:10] if dates else "",
        shown=shown,
        style=style,
        script=script,
    )


def shown(row: ResultRow, name: str) -> str:
    """What a filter compares: the text in the column."""
    return str(row.setting if name == "policy" else getattr(row, name)) or "unknown"


def breakable(name: str) -> Markup:
    """A name, escaped, that may be broken after its underscores."""
    from markupsafe import Markup, escape

    return Markup("_<wbr>").join(escape(part) for part in name.split("_"))


def number(value: float | None) -> str:
    """A number for people: four digits after the point, fewer for large ones."""
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def data_url(row: ResultRow) -> str:
    """The page of a data set at its commit; the data set's own where no commit is known."""
    if not row.dataset:
        return ""
    at = hub_url(row.dataset, row.dataset_revision).removeprefix(HUB)
    return f"{HUB}/datasets{at}" if at else f"{HUB}/datasets/{row.dataset}"
