"""The demo's table: five methods, five tasks, and which differences are more than chance.

The methods are run by one sweep, which runs each model once for all of them; the numbers and tests
are those of `trimix compare`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

METHODS = {  # policy of `--model trimix`: name in the table
    "large_ins": "large_ins alone",
    "small_base": "small_base alone",
    "small_cpt": "small_cpt alone",
    "proxy_tuning": "Proxy Tuning",
    "ppl": "TriMix (ppl)",
}
SURE = 0.05  # p from which on a difference may be chance


class Column(NamedTuple):
    """One column of the table.

    Attributes:
        title: Heading.
        task: lm-eval task; empty for the mean of those in percent.
        metric: Its unit, for people.
        percent: Whether it is shown in percent.
    """

    title: str
    task: str
    metric: str
    percent: bool = True


COLUMNS = (
    Column("text", "trimix_demo_rolling", "bits/byte ↓", percent=False),
    Column("finish", "trimix_demo_finish", "% right"),
    Column("follow", "trimix_demo_follow", "% exact"),
    Column("say", "trimix_demo_say", "% exact"),
    Column("gloss_to", "trimix_demo_gloss_to", "% exact"),
    Column("mean", "", "of the four"),
)


@dataclass(frozen=True)
class Number:
    """A number of the table.

    Attributes:
        value: In the column's unit.
        stderr: Its standard error.
        n: Documents it was measured on; of the mean, those of all tasks.
        mark: ``best`` of its column, ``level`` if it is not significantly different from the best,
            else empty.
    """

    value: float
    stderr: float
    n: int
    mark: str


#: By policy, and by the column's title.
Table = dict[str, dict[str, Number]]


def evaluate(output: Path, limit: int | None = None) -> list[Any]:
    """Runs what is not there yet: all methods on all tasks.

    Args:
        output: The folder of the results.
        limit: Documents per task; None for all.

    Returns:
        The `Run` of each method.
    """
    from trimix_lm_eval import sweep
    from trimix_lm_eval.analysis.results import read

    config: dict[str, Any] = {
        "model": "trimix",
        "model_args": {"pretrained": "demo"},
        "tasks": [column.task for column in COLUMNS if column.task],
        "batch_size": 128,
        "output_path": str(output),
        "sweep": {"policies": list(METHODS)},
    }
    if limit is not None:
        config["limit"] = limit
    files = sweep.sweep(config)
    runs, problems = read(files)
    if problems:
        raise SystemExit("\n".join(f"{one.path}: {one.what}" for one in problems))
    return runs


def table(runs: list[Any]) -> Table:
    """Makes the table out of results.

    The best of a column is tested against each other method with the paired bootstrap over
    documents, p corrected by Holm for their number.
    """
    from trimix_lm_eval.analysis.compare.comparison import comparisons
    from trimix_lm_eval.analysis.report import cells

    (found,) = comparisons(runs, "ppl")
    places = {column.tasks[0]: i for i, column in enumerate(found.columns) if not column.is_mean}
    rows = {entry.name: entry.cells for entry in found.entries}
    made: Table = {policy: {} for policy in METHODS}
    for column in COLUMNS:
        if column.task:
            its = {policy: rows[policy][places[column.task]] for policy in METHODS}
        else:
            over = [places[one.task] for one in COLUMNS if one.task and one.percent]
            its = {policy: cells.mean([rows[policy][i] for i in over]) for policy in METHODS}
        for policy, number in _column(its, 100.0 if column.percent else 1.0).items():
            made[policy][column.title] = number
    return made


def _column(its: Mapping[str, Any], scale: float) -> dict[str, Number]:
    """The numbers of a column, by policy, with their marks."""
    from trimix_lm_eval.analysis.compare.statistics import holm
    from trimix_lm_eval.analysis.report.cells import tested

    best = max(its.values(), key=lambda cell: cell.goodness)
    others = {policy: cell for policy, cell in its.items() if cell.goodness < best.goodness}
    tests = {policy: tested(cell, best, "the best")[0] for policy, cell in others.items()}
    done = {policy: test.p for policy, test in tests.items() if test}
    p = dict(zip(done, holm(list(done.values())), strict=True))

    def mark(policy: str) -> str:
        if policy not in others:
            return "best"
        return "level" if p.get(policy, 1.0) >= SURE else ""

    return {
        policy: Number(scale * cell.value, scale * (cell.stderr or 0.0), sum(cell.n), mark(policy))
        for policy, cell in its.items()
    }


def right(runs: list[Any], task: str) -> dict[str, list[bool]]:
    """By policy, which documents of a task of questions it has right."""
    return {
        str(run.policy): [bool(sample[run.main(task).metric]) for sample in run.samples(task) or ()]
        for run in runs
    }


def shown(number: Number, percent: bool) -> str:
    """A number as text, without its mark."""
    return f"{number.value:.1f}" if percent else f"{number.value:.3f}"


def errors(made: Table) -> str:
    """The largest standard error of each unit, in words."""
    largest = {
        percent: max(
            row[column.title].stderr
            for row in made.values()
            for column in COLUMNS
            if column.percent is percent and column.task
        )
        for percent in (True, False)
    }
    return f"at most {largest[True]:.1f} points, {largest[False]:.3f} bits per byte"


def markdown(made: Table) -> str:
    """The table for the README: the best in bold, what is level with it marked."""
    heads = [f"{column.title}, {column.metric}" for column in COLUMNS]
    lines = [f"| method | {' | '.join(heads)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for policy, name in METHODS.items():
        cells = []
        for column in COLUMNS:
            number = made[policy][column.title]
            text = shown(number, column.percent)
            cells.append({"best": f"**{text}**", "level": f"{text}°", "": text}[number.mark])
        lines.append(f"| {name} | {' | '.join(cells)} |")
    sizes = [made["ppl"][column.title].n for column in COLUMNS if column.task]
    lines.append(f"| n | {' | '.join(map(str, sizes))} | |")
    return "\n".join(lines)


def nats(runs: list[Any], task: str) -> dict[str, list[float]]:
    """By policy, the nats of each document of a task of running text."""
    return {
        str(run.policy): [
            round(-sample["bits_per_byte"][0], 3) for sample in run.samples(task) or ()
        ]
        for run in runs
    }


def dumped(runs: list[Any], made: Table) -> str:
    """The table as JSON, and what each method has of each document, from which it follows.

    Of questions, a string of 1 (right) and 0; of running text, nats.
    """
    rows = {p: {title: asdict(number) for title, number in row.items()} for p, row in made.items()}
    asked = {
        column.task: {
            policy: "".join(str(int(one)) for one in row)
            for policy, row in right(runs, column.task).items()
        }
        for column in COLUMNS
        if column.task and column.percent
    }
    text = {c.task: nats(runs, c.task) for c in COLUMNS if c.task and not c.percent}
    return json.dumps({"table": rows, "right": asked, "nats": text}, indent=1) + "\n"


def loaded(text: str) -> Table:
    """The table that `dumped` wrote."""
    rows = json.loads(text)["table"]
    return {p: {title: Number(**one) for title, one in row.items()} for p, row in rows.items()}
