"""A comparison as Markdown, as LaTeX, for a terminal, and as CSV."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trimix_lm_eval import __version__
from trimix_lm_eval.analysis.compare import words
from trimix_lm_eval.analysis.compare.comparison import Comparison
from trimix_lm_eval.analysis.compare.words import Grid, GridCell
from trimix_lm_eval.analysis.report.page import markdown as escaped
from trimix_lm_eval.utils import csv_text, outputs
from trimix_lm_eval.utils.paths import printable

#: By this the files of an earlier comparison are known.
COMMAND = "trimix compare"
#: Tasks beyond these are left to the files.
_ON_TERMINAL = 6

_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{"<": r"$<$", ">": r"$>$", "|": r"$|$"},
    **{"↑": r"$\uparrow$", "↓": r"$\downarrow$", "−": r"$-$", "–": "--", "°": r"$^{\circ}$"},
    **{"α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$"},
}


def terminal(found: Sequence[Comparison]) -> list[str]:
    """The tables as lines for a terminal."""
    lines = []
    for one in found:
        grid = words.score_grid(one, _ON_TERMINAL)
        lines += ["", words.heading(one), "", *_pipes(grid, _marked)]
        more = sum(not column.is_mean for column in one.columns) - _ON_TERMINAL
        lines += [f"and {more} more tasks in the files"] * (more > 0)
        lines += ["", *words.notes(one)]
    return [printable(line) for line in lines[1:]]


def markdown(found: Sequence[Comparison]) -> str:
    """All of it as Markdown."""
    lines = [outputs.generator(COMMAND), "", "# Policies compared", ""]
    for one in found:
        lines += [f"## {escaped(words.heading(one))}", ""]
        for grid in filter(None, (words.score_grid(one), words.gap_grid(one))):
            lines += [
                f"### {grid.title}",
                "",
                *_pipes(grid, lambda cell: _marked(cell, escaped)),
                "",
            ]
        for note in words.notes(one):
            lines += [escaped(note), ""]
        told = [f"* {escaped(title)}: {escaped(cost)}" for title, cost in words.costs(one)]
        lines += (
            ["What policies say that they take beside these passes:", "", *told, ""] if told else []
        )
    return "\n".join([*lines, f"Made by trimix-lm-eval {__version__}.", ""])


def _pipes(grid: Grid, write: Callable[[GridCell], str]) -> Iterator[str]:
    """A table of Markdown, its columns aligned for who reads it as text."""
    rows = [[GridCell(head) for head in grid.heads], *grid.rows]
    table = [[write(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for place, row in enumerate(table):
        first, *rest = row
        right = (text.rjust(width) for text, width in zip(rest, widths[1:], strict=True))
        yield f"| {' | '.join([first.ljust(widths[0]), *right])} |"
        if place == 0:
            rule = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
            yield f"|{'|'.join(rule)}|"


def _marked(cell: GridCell, escape: Callable[[str], str] = str) -> str:
    text = f"**{escape(cell.text)}**" if cell.best else escape(cell.text)
    marks = ("▲" if cell.level > 0 else "▼") * abs(cell.level) + "°" * cell.untested
    return f"{text} {marks}" if marks else text


# ---------------------------------------------------------------- LaTeX


def latex(found: Sequence[Comparison]) -> str:
    """The tables for a paper, which needs the package ``booktabs``."""
    parts = [f"% {COMMAND}, trimix-lm-eval {__version__}; needs \\usepackage{{booktabs}}"]
    for one in found:
        for grid in filter(None, (words.score_grid(one), words.gap_grid(one))):
            parts += ["", *_tabular(grid, words.heading(one))]
        parts += ["", r"% Superscripts: + better, - worse, in place of marks."]
        parts += [f"% {note}" for note in words.notes(one)]
    return "\n".join([*parts, ""])


def _tabular(grid: Grid, caption: str) -> Iterator[str]:
    yield r"\begin{table}"
    yield r"\centering"
    yield f"\\caption{{{tex(f'{grid.title}: {caption}')}.}}"
    yield f"\\begin{{tabular}}{{l{'r' * (len(grid.heads) - 1)}}}"
    yield r"\toprule"
    yield f"{' & '.join(map(tex, grid.heads))} \\\\"
    yield r"\midrule"
    for place, row in enumerate(grid.rows):
        if place == grid.ranked and place:
            yield r"\midrule"
        yield f"{' & '.join(map(_tex_cell, row))} \\\\"
    yield r"\bottomrule"
    yield r"\end{tabular}"
    yield r"\end{table}"


def tex(text: str) -> str:
    """A text that LaTeX shows as it is."""
    return re.sub(r".", lambda sign: _LATEX.get(sign[0], sign[0]), " ".join(text.split()))


def _tex_cell(cell: GridCell) -> str:
    text = f"\\textbf{{{tex(cell.text)}}}" if cell.best else tex(cell.text)
    marks = ("+" if cell.level > 0 else "-") * abs(cell.level) or r"\circ" * cell.untested
    return f"{text}$^{{{marks}}}$" if marks else text


# ---------------------------------------------------------------- CSV


def csv(found: Sequence[Comparison]) -> str:
    """A line for each number, unrounded."""
    lines = [line for one in found for line in _lines(one)]
    return csv_text.text(list(lines[0]) if lines else [], (line.values() for line in lines))


def _lines(one: Comparison) -> Iterator[dict[str, Any]]:
    for entry in one.entries:
        for place, (column, cell) in enumerate(zip(one.columns, entry.cells, strict=True)):
            if cell is None:
                continue
            its = entry.against[place] if entry.against else None
            test = its.test if its else None
            yield {
                "system": one.title,
                "protocol": one.variant,
                "policy": entry.name,
                "kind": entry.row.kind,
                "honesty": entry.honesty,
                "ranked": entry.contender,
                "baseline": entry is one.baseline,
                "column": column.title,
                "tasks": " ".join(column.tasks),
                "metric": cell.metric,
                "filter": cell.filter,
                "higher_is_better": cell.higher_is_better,
                "value": cell.value,
                "stderr": cell.stderr,
                "n": sum(cell.n) or None,
                "delta": its.delta if its else None,
                "ci_low": test.low if test else None,
                "ci_high": test.high if test else None,
                "p": test.p if test else None,
                "p_holm": its.p if its else None,
                "not_tested": its.why_not if its else "",
                "gap_closed": entry.closed[place] if entry.closed else None,
                "mean_gap_closed": entry.mean_closed,
                "mean_rank": entry.rank,
                "sources": " ".join(entry.sources),
                "parameters": entry.parameters,
                "cost": entry.cost,
                "not_comparable": "; ".join(cell.reasons),
                "files": "; ".join(run.file for run in cell.runs),
            }
