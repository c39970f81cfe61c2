"""Which runs belong in one table: those of the same models, one row for each way to weight them.

A report may be given runs of several trios. Runs of the same large_ins and small_base are one
`System`; small_cpt may differ from task to task, since there is one for each language. A run that
needed one source only (a single model) belongs to every system that has this source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trimix_lm_eval.analysis.results import SINGLE, Run
from trimix_lm_eval.fusion.policies.fixed import Fixed, ProxyTuning
from trimix_lm_eval.fusion.weights import SOURCES, Weights

#: The kinds of rows, in the order in which they are shown.
KINDS = ("single", "other", "proxy", "policy", "fixed", "oracle")


@dataclass
class TableRow:
    """One row of a table: a way to weight the models.

    Attributes:
        key: Unique in its system.
        kind: One of `KINDS`.
        runs: By task, the run that it shows.
        best: Of an oracle the same by task and filter, since each has a best point of its own.
        groups: By group, the run whose number it shows.
        weights: The point, if it is one.
        single: Whether it is one model, to which Δ may refer.
        variant: How its runs depart from the published protocol.
        circumstances: What changes the numbers of any point, see `Run.circumstances`.
        points: Of an oracle, those that it chose from, if they are the same on all of its tasks.
        detail: More about it, in small.
    """

    key: str
    title: str
    kind: str
    runs: dict[str, Run] = field(default_factory=dict)
    best: dict[tuple[str, str], Run] = field(default_factory=dict)
    groups: dict[str, Run] = field(default_factory=dict)
    weights: Weights | None = None
    single: bool = False
    variant: str = ""
    circumstances: str = ""
    points: frozenset[Weights] = frozenset()
    detail: str = ""

    def run_of(self, task: str, filter_name: str) -> Run | None:
        """The run whose number of a task and filter it shows."""
        return self.best.get((task, filter_name)) or self.runs.get(task)

    @property
    def plane(self) -> tuple[str, str]:
        """Points that are equal in this are of one plane, and an oracle may choose among them."""
        return self.variant, self.circumstances


@dataclass
class System:
    """Runs of the same models, oldest first.

    Attributes:
        shared: By role, the source of all its runs.
        adapted: By task, its small_cpt.
        rows: By key, without oracles.
        others: By key of a row of one of lm-eval's own models, that model's name in full.
        superseded: Of numbers that newer runs of the same row replaced, the task, old and new run.
    """

    shared: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    adapted: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    rows: dict[str, TableRow] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    superseded: list[tuple[str, Run, Run]] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def fits(self, run: Run) -> bool:
        """Whether no source of a run differs from what is here."""
        return all(
            all(self.adapted.get(task, it) == it for task in run.scores)
            if role == "small_cpt"
            else self.shared.get(role, it) == it
            for role, it in _sources(run).items()
        )

    def add(self, run: Run) -> None:
        """Take a run and its sources in."""
        self.runs.append(run)
        for role, it in _sources(run).items():
            if role == "small_cpt":
                self.adapted.update(dict.fromkeys(run.scores, it))
            else:
                self.shared[role] = it

    def paths(self, role: str) -> list[str]:
        """Hub ids or folders of a role; several for small_cpt."""
        found = [str(run.sources[role].get("path")) for run in self.runs if role in _sources(run)]
        return list(dict.fromkeys(found))

    @property
    def points(self) -> list[TableRow]:
        """The fixed points that an oracle may choose from: Proxy Tuning is one, models are not."""
        return [row for row in self.rows.values() if row.weights is not None and not row.single]

    def shown(self, tasks: Sequence[str]) -> list[TableRow]:
        """The rows of a table of tasks: without the points that maps of all of them show."""
        rows = []
        for row in self.rows.values():
            mine = [task for task in tasks if task in row.runs]
            mapped = row.kind == "fixed" and all(_dense(row, self.points, task) for task in mine)
            if mine and not mapped:
                rows.append(row)
        return sorted(rows, key=lambda row: KINDS.index(row.kind))


def systems(runs: Sequence[Run]) -> list[System]:
    """Sort runs, oldest first, into systems and rows: the newest of a row and task counts."""
    found: list[System] = []
    for run in sorted(runs, key=lambda run: -len(_sources(run))):
        fitting = [system for system in found if system.fits(run)]
        if not fitting:
            fitting = [System()]
            found += fitting
        # Only a run of a whole trio says which trio it is of.
        whole = len(set(_sources(run)) & set(SINGLE)) == len(SINGLE)
        for system in fitting[:1] if whole else fitting:
            system.add(run)
    order = {id(run): place for place, run in enumerate(runs)}
    for system in found:
        system.runs.sort(key=lambda run: order[id(run)])
        for run in system.runs:
            _place(run, system)
    return found


def _place(run: Run, system: System) -> None:
    key, twin = f"{run.label} [{run.variant}]" if run.variant else run.label, ""
    if not run.trimix:
        key = f"{run.config.get('model')}: {key}"
        twin = _twin(key, str(run.raw.get("model_name")), system)
        key += twin
    if key not in system.rows:
        system.rows[key] = _row(key, run, system, twin)
    row = system.rows[key]
    for task in run.scores:
        if task in row.runs:
            system.superseded.append((task, row.runs[task], run))
        row.runs[task] = run
    row.groups.update(dict.fromkeys(run.groups, run))


def _twin(key: str, name: str, system: System) -> str:
    """What tells a model from others of its label, which shortens the paths of folders."""
    twin, number = "", 1
    while system.others.setdefault(f"{key}{twin}", name) != name:
        number += 1
        twin = f" ({number})"
    return twin


def _row(key: str, run: Run, system: System, twin: str) -> TableRow:
    if not run.trimix:
        known = {path for role in SOURCES for path in system.paths(role)}
        single = run.is_named_model(known)
        return TableRow(key, f"{run.label}{twin}", "other", single=single, variant=run.variant)
    kind = {ProxyTuning.name: "proxy", Fixed.name: "fixed"}.get(str(run.policy), "policy")
    if run.policy in SINGLE:
        kind = "single"
    elif run.honesty == "oracle":
        kind = "oracle"
    return TableRow(
        key,
        run.title,
        kind,
        weights=run.weights,
        single=kind == "single",
        variant=run.variant,
        circumstances=run.circumstances,
    )


def _dense(row: TableRow, points: Sequence[TableRow], task: str) -> bool:
    """Whether a point has two neighbours each along alpha and along beta: then a map shows it."""
    mine = row.weights
    others = [p.weights for p in points if p.plane == row.plane and task in p.runs]
    if mine is None or mine.gamma is not None:
        return False
    near = [w for w in others if w is not None and w != mine and w.gamma is None]
    along_alpha = {w.alpha for w in near if w.beta == mine.beta}
    along_beta = {w.beta for w in near if w.alpha == mine.alpha}
    return len(along_alpha) >= 2 and len(along_beta) >= 2


def _sources(run: Run) -> dict[str, tuple[Any, ...]]:
    """What tells a run's models from others, by role: a local digest, or path and revision."""
    found = {}
    for role, source in run.sources.items():
        place = source.get("digest") or (
            source.get("path"),
            source.get("subfolder"),
            source.get("gguf_file"),
            source.get("commit") or source.get("revision"),
        )
        found[str(role)] = (place, source.get("dtype"), source.get("quantization"))
    return found
