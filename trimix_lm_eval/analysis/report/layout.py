"""Which tasks stand side by side in a table, and which of them may be averaged.

What the groups of our own tasks say (MC, ENG-G, LRL-G, Avg) is read from their YAML, so that a new
language or benchmark needs no word here. Tasks of others stand together with those of their group;
a mean is taken only over all tasks of a column, or of equal metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from os.path import commonprefix
from typing import NamedTuple

from trimix_lm_eval.tasklib.catalog import shipped
from trimix_lm_eval.tasklib.languages import ENGLISH


class Mean(NamedTuple):
    """A column that is a mean, of equal weight.

    Attributes:
        title: As in the paper, e.g. ``MC``.
        by_score: Whether to take our tasks' metric ``score``, from 0 to 1, which all of them have;
            else their own metric, which is then the same for all.
    """

    title: str
    tasks: tuple[str, ...]
    by_score: bool


class Layout(NamedTuple):
    """The columns of one table: its tasks with what to call each here, then means.

    Attributes:
        name: Of the group or tag.
        title: For people.
        note: What is missing, in a sentence; may be empty.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    short: tuple[str, ...]
    means: tuple[Mean, ...]
    note: str


def layouts(
    tasks: Sequence[str], metrics: Mapping[str, str], groups: Mapping[str, Sequence[str]]
) -> list[Layout]:
    """Sort tasks into tables, by their metrics and lm-eval's groups of those that are not ours."""
    found: dict[str, list[str]] = {}
    for task in sorted(tasks):
        found.setdefault(_table(task, frozenset(tasks), groups), []).append(task)
    return [_layout(name, found[name], metrics) for name in sorted(found, key=_place)]


def across(tables: Sequence[Layout]) -> list[tuple[str, list[str]]]:
    """The tables over tables, languages of one benchmark: each one's title, and names of these."""
    families: dict[str, list[Layout]] = {}
    for table in tables:
        parent = _home(table.name)
        if parent and table.means:
            families.setdefault(parent, []).append(table)
    return [
        (
            f"{_alias(parent)[0]}: mean over {', '.join(part.title for part in parts)}",
            [part.name for part in parts],
        )
        for parent, parts in families.items()
        if len(parts) > 1
    ]


def language(task: str) -> str:
    """The language code of one of our tasks; empty for others."""
    select = ((shipped().get(task) or {}).get("dataset_kwargs") or {}).get("select") or {}
    return str(select.get("language") or "")


def _place(name: str) -> tuple[bool, str, int, str]:
    """Tables of our own groups first, as the group above them lists them (bo, ug, kk, mn)."""
    parent = _home(name)
    return name not in shipped(), parent, _members(parent).index(name) if parent else 0, name


def _layout(name: str, tasks: list[str], metrics: Mapping[str, str]) -> Layout:
    members = [task for task in leaves(name) if task in tasks]
    ordered = tuple(members + [task for task in tasks if task not in members])
    short = short_names(ordered)
    means, lacking = [], []
    for title, below in _columns(name):
        missing = [task for task in below if task not in tasks]
        if missing:
            what = ", ".join(missing) if len(missing) < 3 else f"{len(missing)} further tasks"
            lacking.append(f"{title} needs {what}, which no run has")
        else:
            means.append(Mean(title, tuple(below), True))
    note = "; ".join(lacking)
    if not means and len(ordered) > 1:
        kinds = sorted({metrics[task] for task in ordered})
        if len(kinds) == 1:
            means = [Mean(f"mean of {len(ordered)}", ordered, False)]
        else:
            note = f"No mean: the metrics are not alike ({', '.join(kinds)})"
    return Layout(name, _title(name), ordered, short, tuple(means), f"{note}." if note else "")


def short_names(tasks: Sequence[str]) -> tuple[str, ...]:
    """Tasks without what the names of all begin with, up to a ``_``."""
    prefix = commonprefix(list(tasks)) if len(tasks) > 1 else ""
    return tuple(task[prefix.rfind("_") + 1 :] for task in tasks)


def _table(task: str, present: frozenset[str], groups: Mapping[str, Sequence[str]]) -> str:
    """The group whose columns a task belongs to, if one is complete; else its tag or group."""
    column = _home(task)
    table = _home(column) if column else ""
    if table and any(present.issuperset(below) for _, below in _columns(table)[:-1]):
        return table
    if table or task in shipped():
        tag = (shipped().get(task) or {}).get("tag")
        return tag if isinstance(tag, str) else column or task
    holding = [group for group, members in groups.items() if task in members]
    return min(holding, key=lambda group: (len(groups[group]), group)) if holding else task


def _columns(table: str) -> list[tuple[str, list[str]]]:
    """Of a group of groups: each column's title and tasks, then those of the mean of all."""
    prefix, _ = _alias(table)
    found = []
    for member in _members(table):
        before, title = _alias(member)
        if "group" in shipped().get(member, {}):
            found.append((title if before == prefix else f"{before} {title}", leaves(member)))
    return [*found, ("Avg", leaves(table))] if found else []


def _title(name: str) -> str:
    before, after = _alias(name)
    title = before if after in ("", "Avg") else f"{before}: {after}"
    return f"{ENGLISH[title]} ({title})" if title in ENGLISH else title


def _alias(group: str) -> tuple[str, str]:
    """``bo: MC`` as ``("bo", "MC")``."""
    alias = str((shipped().get(group) or {}).get("group_alias") or group)
    before, _, after = alias.partition(": ")
    return before, after


def _members(group: str) -> list[str]:
    members = (shipped().get(group) or {}).get("task")
    return [str(member) for member in members] if isinstance(members, list) else []


def leaves(group: str) -> list[str]:
    """The tasks below a group, in order; empty for a task."""
    return [task for member in _members(group) for task in leaves(member) or [member]]


@cache
def _home(name: str) -> str:
    """The smallest group that lists a task or group; empty if none does."""
    holding = [group for group in shipped() if name in _members(group)]
    return min(holding, key=lambda group: (len(leaves(group)), group)) if holding else ""
