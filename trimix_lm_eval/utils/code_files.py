"""Python code by its content: the files of functions and classes, and what these import.

Two functions of one name and place may do different things, and numbers depend on what they do.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[1]
#: What is in these folders changes with a version only.
_INSTALLED = (
    _PACKAGE,
    *(
        Path(sysconfig.get_path(name)).resolve()
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    ),
)


def digests(things: Iterable[Any]) -> dict[str, str]:
    """By name, the digest of each file that functions or classes are in or import from beside it.

    Files of this package are left out, and those of installed packages that are imported.

    Args:
        things: Functions and classes; what has no file has no digest.
    """
    roots = {file for one in things if (file := _file_of(one))}
    found: dict[str, set[str]] = {}
    for root in roots:
        for file in _with_imports(root, set()):
            name = Path(os.path.relpath(file, root.parent)).as_posix()
            content = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
            found.setdefault(name, set()).add(content)
    return {name: "+".join(sorted(several)) for name, several in sorted(found.items())}


def _file_of(function: Any) -> Path | None:
    """The file that a function is written in, unless it is this package's or there is none."""
    try:
        found = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return None
    if found is None or not (file := Path(found).resolve()).is_file():
        return None
    return None if file.is_relative_to(_PACKAGE) else file


def _with_imports(file: Path, seen: set[Path]) -> Iterator[Path]:
    """A file, and those that it imports, and so on, but for installed packages."""
    if file in seen:
        return
    seen.add(file)
    yield file
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names, folder = [alias.name for alias in node.names], file.parent
        elif isinstance(node, ast.ImportFrom):
            inner = [f"{node.module or ''}.{alias.name}".lstrip(".") for alias in node.names]
            names, folder = inner, file.parents[max(0, node.level - 1)]
        else:
            continue
        for name in names:
            for found in _modules(name, folder):
                yield from _with_imports(found, seen)


def _modules(name: str, folder: Path) -> Iterator[Path]:
    """The files of a dotted name, its packages first; the last part may be no module."""
    places = [str(folder), *sys.path]
    for part in name.split("."):
        spec = PathFinder.find_spec(part, places)
        if spec is None:
            return
        places = list(spec.submodule_search_locations or [])
        if spec.has_location and spec.origin:
            file = Path(spec.origin).resolve()
            if file.suffix != ".py" or any(file.is_relative_to(path) for path in _INSTALLED):
                return
            yield file
