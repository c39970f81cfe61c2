"""What the package's own task YAML says, read without lm-eval or torch.

lm-eval's index reads every task that it ships, which takes it many seconds; ``trimix tasks``
reads a few hundred small files instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from trimix_lm_eval.utils.columns import aligned
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.paths import tasks_dir
from trimix_lm_eval.utils.yaml_files import read_yaml

Config = dict[str, Any]
#: What happened, by data set and remedy.
Notes = dict[tuple[str, str], list[str]]
#: From a task's YAML to where its data is, in a word; raises an error if it cannot be had.
Reach = Callable[[Config], str]


class Listed(NamedTuple):
    """One line of ``trimix tasks``.

    For a group ``what`` is its members, and ``shots`` and ``data`` are empty. For a task these are
    its output type, exemplars in the prompt, and where its data is, or the number of the note that
    says why it is not there.
    """

    name: str
    kind: str
    shots: str
    what: str
    data: str


def read_all(folder: Path) -> dict[str, Config]:
    """Read the YAML of all tasks and groups below a folder, as lm-eval finds them.

    The content of each file with what it includes, by the name of its task or group.
    """
    configs = (_read(path) for path in sorted(folder.glob("**/*.yaml")))
    named = ((config.get("group") or config.get("task"), config) for config in configs)
    return {name: config for name, config in named if isinstance(name, str)}


@cache
def shipped() -> dict[str, Config]:
    """The package's own tasks and groups, read once: they are hundreds of files."""
    return read_all(tasks_dir())


def tasks_of(configs: dict[str, Config], pattern: str) -> Iterator[tuple[str, Config]]:
    """Yield the tasks that a name stands for: a task, a group, a tag, or a shell pattern of these.

    Name and content of each, without repetition.
    """
    waiting, seen = [pattern], set()
    while waiting:
        wanted = waiting.pop(0)
        for name, config in configs.items():
            if name in seen or not (fnmatch(name, wanted) or fnmatch(_tag(config), wanted)):
                continue
            seen.add(name)
            if "group" in config:
                waiting += _members(config)
            else:
                yield name, config


def list_tasks(configs: dict[str, Config], pattern: str, reach: Reach) -> list[str]:
    """Lay the tasks and groups that match a shell pattern out in columns, groups first.

    Lines: a header, a line each, and notes on data that cannot be had, for which every task asks
    ``reach``; none at all if no name or tag matches.
    """
    notes: Notes = {}
    rows = [
        _listed(name, config, reach, notes)
        for name, config in configs.items()
        if fnmatch(name, pattern) or fnmatch(_tag(config), pattern)
    ]
    if not rows:
        return []
    rows.sort(key=lambda row: (row.kind, row.name))
    table = [tuple(field.upper() for field in Listed._fields), *rows]
    return [*aligned(table), *_notes(notes)]


def _notes(notes: Notes) -> Iterator[str]:
    """One note for all tasks of a data set with the same remedy: what happened to the first."""
    for number, ((_, hint), happened) in enumerate(notes.items(), 1):
        others = len(set(happened)) - 1
        more = f" (and {others} more like this)" if others else ""
        yield f"\n[{number}] {happened[0]}{more}\n  -> {hint}"


def _listed(name: str, config: Config, reach: Reach, notes: Notes) -> Listed:
    if "group" in config:
        members = _members(config)
        shown = ", ".join(members)
        shown = shown if len(shown) <= 60 else f"{len(members)} members"
        return Listed(name, "group", "", shown, "")
    try:
        data = reach(config)
    except TrimixError as error:
        happened, _, hint = str(error).partition("\n  -> ")
        note = (str(config.get("dataset_path")), hint)
        notes.setdefault(note, []).append(happened)
        data = f"no [{list(notes).index(note) + 1}]"
    # What lm-eval takes when the YAML says nothing.
    output = config.get("output_type", "generate_until")
    return Listed(name, "task", str(config.get("num_fewshot", 0)), output, data)


def _members(config: Config) -> list[str]:
    return [m if isinstance(m, str) else str(m.get("task", "")) for m in config["task"]]


def _tag(config: Config) -> str:
    tag = config.get("tag")
    return tag if isinstance(tag, str) else ""


def _read(path: Path) -> Config:
    """Read one YAML file together with what it includes; its own keys win."""
    config: Config = read_yaml(path)
    includes = config.pop("include", [])
    merged: Config = {}
    for name in includes if isinstance(includes, list) else [includes]:
        merged.update(_read(path.parent / name))
    return {**merged, **config}
