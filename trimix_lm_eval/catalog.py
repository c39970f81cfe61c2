"""What the package's own task YAML says, read without lm-eval or torch.

lm-eval's index reads every task that it ships, which takes it many seconds; ``trimix tasks``
reads a few dozen files instead.
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple


class Listed(NamedTuple):
    """One line of ``trimix tasks``.

    Attributes:
        name: What to give to ``--tasks``.
        kind: ``task`` or ``group``.
        output: The task's output type; for a group, its members.
        metadata: The metadata of the YAML, e.g. ``language=bo version=1.0``.
    """

    name: str
    kind: str
    output: str
    metadata: str


def list_tasks(folder: Path, pattern: str = "*") -> list[Listed]:
    """List the tasks and groups of a folder, sorted by name.

    Args:
        folder: Searched for ``**/*.yaml``, as lm-eval does.
        pattern: A shell pattern over names.

    Raises:
        yaml.YAMLError: If a file is not YAML.
    """
    rows = (_listed(_read(path)) for path in folder.glob("**/*.yaml"))
    return sorted(row for row in rows if row and fnmatch(row.name, pattern))


def as_table(rows: list[Listed]) -> str:
    """Lay rows out in columns, below a header."""
    table = [tuple(field.upper() for field in Listed._fields), *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


def _listed(config: dict[str, Any]) -> Listed | None:
    """Return the line for one file's content, or None if it defines neither task nor group."""
    metadata = config.get("metadata") or {}
    told = " ".join(
        f"{key}={'+'.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in sorted(metadata.items())
    )
    if "group" in config:
        members = (m if isinstance(m, str) else m.get("task", "") for m in config["task"])
        return Listed(config["group"], "group", ", ".join(map(str, members)), told)
    if isinstance(config.get("task"), str):
        # What lm-eval takes when the YAML says nothing.
        return Listed(config["task"], "task", config.get("output_type", "generate_until"), told)
    return None


def _read(path: Path) -> dict[str, Any]:
    """Read one YAML file together with what it includes; its own keys win."""
    import yaml

    class Loader(yaml.SafeLoader):
        """A loader of our own: tags added to it do not leak into everybody's SafeLoader."""

    # ``!function utils.f`` names code, which a listing has no need to import.
    Loader.add_multi_constructor("!", lambda loader, tag, node: str(node.value))
    config: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader) or {}
    includes = config.pop("include", [])
    merged: dict[str, Any] = {}
    for name in includes if isinstance(includes, list) else [includes]:
        merged.update(_read(path.parent / name))
    return {**merged, **config}
