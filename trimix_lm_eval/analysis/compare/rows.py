"""A row of a comparison, and what it comes to against the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from trimix_lm_eval.analysis.compare.statistics import EQUAL, holm, ranks
from trimix_lm_eval.analysis.compare.undecided import Undecided
from trimix_lm_eval.analysis.report.bootstrap import Test
from trimix_lm_eval.analysis.report.cells import Cell, tested
from trimix_lm_eval.analysis.report.systems import TableRow
from trimix_lm_eval.analysis.results import Run
from trimix_lm_eval.analysis.results.scores import is_number
from trimix_lm_eval.fusion.weights import SOURCES


class Against(NamedTuple):
    """How a number stands to the baseline's.

    Attributes:
        delta: Value minus the baseline's.
        better: Whether it is better than the baseline's.
        test: Of that difference; None if there is none.
        p: Of the test, by Holm over all contenders of the column.
        why_not: Why there is no test; empty if there is.
    """

    delta: float
    better: bool
    test: Test | None
    p: float | None
    why_not: str


@dataclass(eq=False)
class ComparedRow:
    """One row; what it comes to against the others is filled in when all are there.

    Attributes:
        row: As the report has it.
        cells: By column.
        contender: Whether it is ranked and tested.
        undecided: Of a policy that is not since it leaves questions open, the tasks.
        against: By column, how it stands to the baseline; empty if it is not tested.
        rank: The mean of its ranks over `Comparison.ranked_on`; None if it has none.
        closed: By column, the share of the way from the baseline to the upper bound; empty if
            there is no upper bound.
        mean_closed: The mean of these over all tasks that have a gap; None if it lacks one.
        cost: `parameters`, relative to the fewest of any contender.
    """

    row: TableRow
    cells: tuple[Cell | None, ...]
    contender: bool = False
    undecided: list[Undecided] = field(default_factory=list)
    against: tuple[Against | None, ...] = ()
    rank: float | None = None
    closed: tuple[float | None, ...] = ()
    mean_closed: float | None = None
    cost: float | None = None

    @property
    def name(self) -> str:
        """What a baseline is called by: the row's key without what all rows have in common."""
        return self.row.key.removesuffix(f" [{self.row.variant}]")

    @property
    def run(self) -> Run:
        """One of its runs; but for those of an upper bound, all are of one policy."""
        return next(iter(self.row.runs.values()))

    @property
    def honesty(self) -> str:
        """How the policy is honest; empty if nobody says."""
        return "oracle" if self.row.kind == "oracle" else self.run.honesty

    @property
    def sources(self) -> tuple[str, ...]:
        """The roles of the models that it runs; of others' models and upper bounds none."""
        runs = self.row.runs.values() if self.row.kind != "oracle" else ()
        used = {role for run in runs for role in run.sources}
        return tuple(role for role in SOURCES if role in used)

    @property
    def parameters(self) -> float | None:
        """Those of all models that it runs, the most of any task; None if results do not tell."""
        runs = self.row.runs.values() if self.row.kind != "oracle" else ()
        found = [run.config.get("model_num_parameters") for run in runs]
        return max((float(it) for it in found if is_number(it) and it > 0), default=None)


def fill_rank(contenders: Sequence[ComparedRow], on: Sequence[int]) -> None:
    """Rank the contenders on some columns, in which all of them have a number."""
    by_task = [
        ranks([cell.goodness for it in contenders if (cell := it.cells[j]) is not None]) for j in on
    ]
    for place, entry in enumerate(contenders):
        entry.rank = sum(of[place] for of in by_task) / len(by_task) if by_task else None


def fill_against(contenders: Sequence[ComparedRow], base: ComparedRow) -> None:
    """Test every contender against the baseline, column by column."""
    others = [entry for entry in contenders if entry is not base]
    by_column = [
        _against([entry.cells[place] for entry in others], its)
        for place, its in enumerate(base.cells)
    ]
    for place, entry in enumerate(others):
        entry.against = tuple(column[place] for column in by_column)


def _against(cells: Sequence[Cell | None], base: Cell | None) -> list[Against | None]:
    """How the numbers of a column stand to the baseline's, with p by Holm over all of them."""
    found: list[Against | None] = []
    for cell in cells:
        if cell is None or base is None or cell.n != base.n:
            found.append(None)
            continue
        test, why_not = tested(cell, base, "the baseline")
        better = cell.goodness > base.goodness + EQUAL
        found.append(Against(cell.value - base.value, better, test, None, why_not))
    places = [i for i, it in enumerate(found) if it is not None and it.test is not None]
    corrected = holm([it.test.p for i in places if (it := found[i]) and it.test])
    for i, p in zip(places, corrected, strict=True):
        if it := found[i]:
            found[i] = it._replace(p=p)
    return found


def fill_closed(entries: Sequence[ComparedRow], base: ComparedRow, tasks: Sequence[int]) -> None:
    """Work out which share of the gap between the baseline and the upper bound each row closes.

    Args:
        entries: All rows, the upper bounds included.
        base: The baseline.
        tasks: The columns that are no means.
    """
    bounds = {it.row.plane: it for it in entries if it.row.kind == "oracle" and it.row.best}
    bound = bounds.get(base.row.plane) or bounds.get((base.row.variant, ""))
    if bound is None:
        return
    triples = [tuple(zip(it.cells, base.cells, bound.cells, strict=True)) for it in entries]
    for entry, its in zip(entries, triples, strict=True):
        entry.closed = tuple(_share(*cells) for cells in its)
    # A task of which the baseline has no share itself has no gap.
    gaps = [j for j in tasks if base.closed[j] is not None]
    for entry in entries:
        shares = [share for j in gaps if (share := entry.closed[j]) is not None]
        entry.mean_closed = sum(shares) / len(gaps) if gaps and len(shares) == len(gaps) else None


def _share(cell: Cell | None, base: Cell | None, bound: Cell | None) -> float | None:
    """The share of a gap that a number closes; None if it or the gap is not there."""
    if cell is None or base is None or bound is None or not cell.n == base.n == bound.n:
        return None
    gap = bound.goodness - base.goodness
    return (cell.goodness - base.goodness) / gap if gap > EQUAL else None


def fill_cost(entries: Sequence[ComparedRow]) -> None:
    """Relate what each row runs to the least that any contender runs."""
    known = [it.parameters for it in entries if it.contender and it.parameters]
    for entry in entries:
        if entry.parameters and known:
            entry.cost = entry.parameters / min(known)
