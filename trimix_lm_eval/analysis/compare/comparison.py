"""Policies by tasks: tests against a baseline, ranks, shares of the gap to the oracle, costs.

Runs of one system that depart from the published protocol alike (the same limit, the same shots)
are one `Comparison`. Its *contenders* are the policies that are honest by themselves, and choose
among the options of questions at all (see `undecided`): they are ranked and tested. Points of a
grid are not, since the best of them is chosen by its test score: they make the upper bound, and
where there is one they have no rows of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trimix_lm_eval.analysis.compare.rows import (
    ComparedRow,
    fill_against,
    fill_closed,
    fill_cost,
    fill_rank,
)
from trimix_lm_eval.analysis.compare.undecided import undecided
from trimix_lm_eval.analysis.report.cells import Column
from trimix_lm_eval.analysis.report.layout import Layout, Mean, short_names
from trimix_lm_eval.analysis.report.model import titles
from trimix_lm_eval.analysis.report.oracles import Shown, oracles
from trimix_lm_eval.analysis.report.plane import LEAST
from trimix_lm_eval.analysis.report.systems import KINDS, System, TableRow, systems
from trimix_lm_eval.analysis.report.tables import columns_of, resampled_cells
from trimix_lm_eval.analysis.results import Run
from trimix_lm_eval.tasklib.catalog import shipped
from trimix_lm_eval.utils.errors import TrimixError, did_you_mean

_HONEST = ("label_free", "needs_exemplars")
#: Rows that are ranked if they are honest; points and models of others are not.
_RANKED = ("single", "proxy", "policy")


@dataclass(frozen=True)
class Comparison:
    """All policies of a system under one protocol.

    Attributes:
        title: The system's models.
        variant: How the protocol departs from the published one; empty if it does not.
        columns: Tasks, then means over tasks of one metric.
        entries: Contenders by rank, then what is not ranked, then upper bounds.
        baseline: What the others are tested against; None if it has no number here.
        ranked_on: Of `columns`, the places of the tasks of which all contenders have numbers.
        lacking: By place of another task, the contenders that have no such number.
        superseded: How many numbers newer runs of the same row and task replaced.
    """

    title: str
    variant: str
    columns: tuple[Column, ...]
    entries: tuple[ComparedRow, ...]
    baseline: ComparedRow | None
    ranked_on: tuple[int, ...]
    lacking: dict[int, list[TableRow]]
    superseded: int

    @property
    def contenders(self) -> list[ComparedRow]:
        """The rows that are ranked and tested."""
        return [entry for entry in self.entries if entry.contender]

    @property
    def bounds(self) -> list[ComparedRow]:
        """The upper bounds; none if there are too few points."""
        return [entry for entry in self.entries if entry.row.kind == "oracle"]


def usual_baseline(sequence: bool) -> str:
    """What is tested against if nothing else is asked for; ``ppl`` needs fusion at every token."""
    return "large_ins" if sequence else "ppl"


def comparisons(runs: Sequence[Run], baseline: str | None) -> list[Comparison]:
    """Compare runs, which are sorted oldest first: each system's by protocol.

    Args:
        runs: Of any models.
        baseline: A policy as tables name it, with its options that are not the usual ones; None
            is the usual one of each protocol.

    Raises:
        TrimixError: There is no such row.
    """
    found = systems(runs)
    made = [
        _compared(_of_variant(system, variant), title, variant, baseline)
        for system, title in zip(found, titles(found), strict=True)
        for variant in dict.fromkeys(row.variant for row in system.rows.values())
    ]
    if all(one.baseline is None for one in made):
        names = list(dict.fromkeys(entry.name for one in made for entry in one.contenders))
        asked = baseline or usual_baseline(all(run.trimix.get("fusion") for run in runs))
        raise TrimixError(
            f"No results are of the baseline {asked!r}.{did_you_mean(asked, names)}",
            f"run it, too, or give --baseline one of: {', '.join(names)}"
            if names
            else "run it, too: points of a grid alone are not compared",
        )
    return made


def _of_variant(system: System, variant: str) -> System:
    rows = {key: row for key, row in system.rows.items() if row.variant == variant}
    return replace(system, rows=rows)


def _compared(system: System, title: str, variant: str, baseline: str | None) -> Comparison:
    sequence = any(
        run.trimix.get("fusion") for row in system.rows.values() for run in row.runs.values()
    )
    part, shown = _layout(system)
    bounds = _bounds(system, part, shown)
    rows = sorted(system.rows.values(), key=lambda row: KINDS.index(row.kind))
    rows = [row for row in rows if row.kind != "oracle" and not (bounds and row.kind == "fixed")]
    rows += bounds
    cells = resampled_cells([part], {part.name: rows}, shown)
    made = columns_of(part, rows, shown, cells)
    columns = tuple(head for head, _ in made)
    entries = [ComparedRow(row, tuple(of[i] for _, of in made)) for i, row in enumerate(rows)]
    for entry in entries:
        if entry.row.kind in _RANKED and entry.honesty in _HONEST:
            entry.undecided = undecided(entry.row)
            entry.contender = not entry.undecided
    contenders = [entry for entry in entries if entry.contender]
    on, lacking = _shared(contenders, columns)
    base = _baseline(contenders, baseline or usual_baseline(sequence))
    fill_rank(contenders, on)
    fill_cost(entries)
    if base is not None:
        fill_against(contenders, base)
        fill_closed(entries, base, [j for j, it in enumerate(columns) if not it.is_mean])
    ordered = sorted(entries, key=lambda it: (not it.contender, it.rank or 0.0))
    old = sum(new.variant == variant for _, _, new in system.superseded)
    return Comparison(title, variant, columns, tuple(ordered), base, on, lacking, old)


def _baseline(contenders: Sequence[ComparedRow], asked: str) -> ComparedRow | None:
    """The contender of a name, of a title, or, if it is the only one, of a policy."""
    for told in (lambda it: it.name, lambda it: it.row.title, lambda it: str(it.run.policy)):
        found = [entry for entry in contenders if told(entry) == asked]
        if len(found) == 1:
            return found[0]
    return None


def _layout(system: System) -> tuple[Layout, Shown]:
    """All tasks in the order of the files, each by the number it is known by; then means."""
    runs = list(dict.fromkeys(run for row in system.rows.values() for run in row.runs.values()))
    main = {task: score for run in runs for task in run.scores if (score := run.main(task))}
    kinds = list(dict.fromkeys(score.metric for score in main.values()))
    if len(kinds) > 1 and all(map(_has_score, runs)):
        means = [Mean("Avg", tuple(main), True)]
    else:
        means = []
        for kind in kinds:
            alike = tuple(task for task, score in main.items() if score.metric == kind)
            if len(alike) > 1:
                means.append(Mean(f"mean {kind}" if len(kinds) > 1 else "mean", alike, False))
    shown = {task: ((score.metric, score.filter),) for task, score in main.items()}
    return Layout("compare", "", tuple(main), short_names(tuple(main)), tuple(means), ""), shown


def _has_score(run: Run) -> bool:
    """Whether all tasks of a run are ours, and have the metric that goes from 0 to 1 for each."""
    return all(
        task in shipped() and any(score.metric == "score" for score in found)
        for task, found in run.scores.items()
    )


def _bounds(system: System, part: Layout, shown: Shown) -> list[TableRow]:
    """The upper bounds of each plane that has points enough to speak of one."""
    many = Counter(row.plane for row in system.points)
    rows = {key: row for key, row in system.rows.items() if many[row.plane] >= LEAST}
    found = oracles(replace(system, rows=rows), part, shown)
    # Of several means none is the one that a point for all tasks could be best in.
    return [row for row in found if row.best or len(part.means) == 1]


def _shared(
    contenders: Sequence[ComparedRow], columns: Sequence[Column]
) -> tuple[tuple[int, ...], dict[int, list[TableRow]]]:
    """The places of the tasks that all contenders have; of the other tasks, who lacks them.

    A number on fewer documents than others is lacking, too.
    """
    shared, lacking = [], {}
    for place, column in enumerate(columns):
        if column.is_mean or not contenders:
            continue
        sizes = {id(it): cell.n if (cell := it.cells[place]) else (-1,) for it in contenders}
        without = [it.row for it in contenders if sizes[id(it)] < max(sizes.values())]
        if without:
            lacking[place] = without
        else:
            shared.append(place)
    return tuple(shared), lacking
