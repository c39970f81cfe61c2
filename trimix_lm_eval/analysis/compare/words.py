"""A comparison as tables of short texts, and the sentences without which they cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from trimix_lm_eval.analysis.compare.comparison import Comparison
from trimix_lm_eval.analysis.compare.rows import ComparedRow
from trimix_lm_eval.analysis.report import bootstrap
from trimix_lm_eval.analysis.report.cells import Cell, Column
from trimix_lm_eval.analysis.report.numbers import Scale, scale, stars
from trimix_lm_eval.fusion.weights import SOURCES

NOTHING = "–"
#: How `ComparedRow.honesty` is told.
_HONESTY = {
    "label_free": "label-free",
    "needs_exemplars": "needs exemplars",
    "oracle": "upper bound",
}


class GridCell(NamedTuple):
    """A text of a table.

    Attributes:
        text: Without the marks.
        best: Whether it is the best of its column.
        level: Of significance, up to 3; below 0 for worse than the baseline, 0 for neither.
        untested: Whether there should be a test, and is none.
    """

    text: str
    best: bool = False
    level: int = 0
    untested: bool = False


class Grid(NamedTuple):
    """A table of texts; before row `ranked` a line sets off what is not ranked."""

    title: str
    heads: list[str]
    rows: list[list[GridCell]]
    ranked: int


def score_grid(one: Comparison, most: int | None = None) -> Grid:
    """The table: policies by tasks, with ranks, shares of the gap and costs.

    Args:
        one: A comparison.
        most: Show no more tasks than this; means are shown all.
    """
    shown = [
        place
        for place, column in enumerate(one.columns)
        if column.is_mean or most is None or place < most
    ]
    units = {place: _unit(one, place) for place in shown}
    best = {place: _best(one.contenders, place) for place in shown}
    ranks = [entry.rank for entry in one.contenders if entry.rank is not None]
    closed = any(entry.mean_closed is not None for entry in one.entries)
    heads = ["policy", *(_head(one.columns[place], units[place]) for place in shown), "rank"]
    heads += ["gap closed"] if closed else []
    rows = []
    for entry in one.entries:
        row = [GridCell(_title(one, entry))]
        row += [_score(entry, place, units[place], best[place]) for place in shown]
        rank = NOTHING if entry.rank is None else f"{entry.rank:.2f}"
        row.append(GridCell(rank, entry.rank is not None and entry.rank == min(ranks)))
        row += [GridCell(_percent(entry.mean_closed))] if closed else []
        sources = "+".join(map(short_role, entry.sources)) or NOTHING
        cost = NOTHING if entry.cost is None else f"{entry.cost:.2f}"
        told = _HONESTY.get(entry.honesty, NOTHING)
        rows.append([*row, GridCell(sources), GridCell(cost), GridCell(told)])
    heads += ["sources", "cost", "honesty"]
    return Grid("Scores, ranks and costs", heads, rows, len(one.contenders))


def gap_grid(one: Comparison) -> Grid | None:
    """The share of the gap that each row closes, column by column; None if there is no gap."""
    shares = [(entry, entry.closed) for entry in one.entries if entry.closed]
    places = [j for j in range(len(one.columns)) if any(it[j] is not None for _, it in shares)]
    if not places:
        return None
    heads = ["policy", *(one.columns[place].title for place in places)]
    rows = [
        [GridCell(_title(one, entry)), *(GridCell(_percent(its[place])) for place in places)]
        for entry, its in shares
    ]
    return Grid(
        "Share of the gap to the upper bound that is closed", heads, rows, len(one.contenders)
    )


def short_role(role: str) -> str:
    """A source as formulas write it: ``li`` of ``large_ins``."""
    return "".join(part[:1] for part in role.split("_"))


def heading(one: Comparison) -> str:
    """The models, and how the protocol departs from the published one."""
    return f"{one.title} ({one.variant})" if one.variant else one.title


def notes(one: Comparison) -> Iterator[str]:
    """What must be said of the table, a sentence or two each."""
    yield _sizes(one)
    if one.superseded:
        old = f"{one.superseded} number{'s'[: one.superseded != 1]}"
        yield f"Of several runs of a policy on a task the newest counts: {old} left out."
    many = len(one.contenders)
    if many == 1:
        yield "No test and no share of a gap: there is one policy."
    elif one.baseline is None:
        yield "No test and no share of a gap: the baseline has no results under this protocol."
    else:
        yield (
            f"Better or worse than the baseline, {one.baseline.row.title}, at p < 0.05, 0.01 and "
            "0.001 with one, two and three marks; no mark, no significant difference. Two-sided "
            f"paired bootstrap over each task's documents ({bootstrap.RESAMPLES:,} resamples), "
            f"p-values corrected by Holm over the {many - 1} other policies of a column; ° not "
            f"tested (fewer than {bootstrap.LEAST} documents, or samples that do not give the "
            "number)."
        )
    yield from _on_ranks(one)
    for entry in one.entries:
        if entry.undecided:
            told = _listed(
                [f"{it.open} of {it.of} documents of {it.task}" for it in entry.undecided]
            )
            yield (
                f"{entry.row.title} is not ranked: no option has any probability in {told}, "
                "where the first option counts as its answer."
            )
    yield from _on_gaps(one)
    roles = [role for role in SOURCES if any(role in entry.sources for entry in one.entries)]
    if roles:
        yield (
            "sources: the models that a policy runs on every token of every prompt, "
            f"{', '.join(f'{short_role(role)} {role}' for role in roles)}. cost: their parameters, "
            "relative to the policy that runs the fewest; what a policy would take alone, since a "
            "sweep runs the sources once for all of them."
        )


def costs(one: Comparison) -> Iterator[tuple[str, str]]:
    """What policies say that they take beside these passes: titles and texts."""
    for entry in one.entries:
        if entry.row.kind != "oracle" and entry.run.cost:
            yield entry.row.title, entry.run.cost


def _sizes(one: Comparison) -> str:
    found: dict[str, list[str]] = {}
    for place, column in enumerate(one.columns):
        if not column.is_mean:
            sizes = sorted({sum(it.n) for e in one.entries if (it := e.cells[place])} - {0})
            told = " to ".join(map(str, dict.fromkeys([sizes[0], sizes[-1]]))) if sizes else "?"
            found.setdefault(told, []).append(column.tasks[0])
    return f"Documents: {'; '.join(f'{n} of {_listed(tasks)}' for n, tasks in found.items())}."


def _on_ranks(one: Comparison) -> Iterator[str]:
    names = [one.columns[place].title for place in one.ranked_on]
    many = len(one.contenders)
    lacking = [
        f"{one.columns[place].title}, of which {_listed([row.title for row in rows])} "
        f"{'has' if len(rows) == 1 else 'have'} no number on as many documents"
        for place, rows in one.lacking.items()
    ]
    left = f" Not ranked on: {'; '.join(lacking)}." if lacking else ""
    if names:
        yield (
            f"rank: mean of the ranks on {_listed(names)} among the {many} policies; those that "
            f"are equal share a rank.{left}"
        )
    elif many:
        yield f"rank: there is no task that all policies have a number of.{left}"


def _on_gaps(one: Comparison) -> Iterator[str]:
    bound = next((entry for entry in one.bounds if entry.row.best), None)
    if bound is None:
        yield (
            "No share of the gap to an upper bound: there are too few points; add "
            "`grid: paper` to the sweep."
        )
    elif any(entry.closed for entry in one.entries) and one.baseline is not None:
        if one.baseline.mean_closed is None:
            yield "No share of the gap to an upper bound: no point is better than the baseline."
            return
        yield (
            "gap closed: the share of the way from the baseline to the upper bound of each task "
            f"({bound.row.detail}), which is no method; the mean over all tasks that have a gap. "
            "Where that is small, shares of it are large."
        )


def _listed(names: Sequence[str], most: int = 6) -> str:
    if len(names) > most:
        return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _title(one: Comparison, entry: ComparedRow) -> str:
    return f"{entry.row.title} (baseline)" if entry is one.baseline else entry.row.title


def _head(column: Column, unit: Scale) -> str:
    metric = "" if column.metric in column.title else f" {column.metric}"
    arrow = "↑" if column.higher_is_better else "↓"
    return f"{column.title}{metric}{f' {unit.unit}' if unit.unit else ''} {arrow}"


def _unit(one: Comparison, place: int) -> Scale:
    values = [cell.value for entry in one.entries if (cell := entry.cells[place]) is not None]
    return scale(one.columns[place].metric, values)


def _best(contenders: Sequence[ComparedRow], place: int) -> list[Cell]:
    """The best numbers of a column, of what is ranked."""
    there = [cell for entry in contenders if (cell := entry.cells[place]) is not None]
    top = max((cell.goodness for cell in there), default=0.0)
    best = [cell for cell in there if cell.goodness == top]
    return best if len(best) < len(there) else []


def _score(entry: ComparedRow, place: int, unit: Scale, best: list[Cell]) -> GridCell:
    cell = entry.cells[place]
    if cell is None:
        return GridCell(NOTHING)
    its = entry.against[place] if entry.against else None
    level = 0 if its is None or its.p is None else len(stars(its.p)) * (1 if its.better else -1)
    untested = its is not None and its.test is None
    return GridCell(unit.text(cell.value), entry.contender and cell in best, level, untested)


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{Scale(100, 0, '').text(share)} %".replace("-", "−")
