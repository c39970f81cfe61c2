"""What a task's results depend on, by content: documents, exemplars, and the code that reads them.

A task names data files and functions, and both may change under an unchanged name. Documents are
digested as the task gives them, wherever they come from and whatever has been made of them; code by
the files of its functions and of what these import from beside them.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from itertools import islice
from pathlib import Path
from typing import Any

from trimix_lm_eval.utils.errors import TrimixError

_PACKAGE = Path(__file__).resolve().parents[1]
#: What is in these folders changes with a version only.
_INSTALLED = (
    _PACKAGE,
    *(
        Path(sysconfig.get_path(name)).resolve()
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    ),
)
#: A name for a thing of no content is its place in memory, which is another each time.
_PLACE = re.compile(r" at 0x[0-9a-f]+")


def digest_of(documents: Iterable[Any]) -> str:
    """Identity of documents in their order."""
    total = hashlib.sha256()
    for document in documents:
        total.update(_as_text(document).encode("utf-8", "surrogatepass") + b"\n")
    return total.hexdigest()[:16]


def evaluated(
    documents: Sequence[Any], limit: float | None, samples: Sequence[int] | None, name: str
) -> list[Any]:
    """Those of a task's documents that a run asks for.

    Args:
        documents: All of them.
        limit: Of the run: how many, or below 1 which share.
        samples: Of the run: which.
        name: Of the task, for messages.

    Raises:
        TrimixError: `samples` names a document that the task does not have.
    """
    if samples:
        if max(samples) >= len(documents):
            raise TrimixError(
                f"samples asks for document {max(samples)} of {name}, which has {len(documents)}.",
                "documents are counted from 0",
            )
        wanted = set(samples)
        return [document for i, document in enumerate(documents) if i in wanted]
    if limit is None:
        return list(documents)
    return list(islice(documents, math.ceil(len(documents) * limit) if limit < 1 else int(limit)))


def exemplars(task: Any, num_fewshot: int | None) -> list[Any]:
    """The documents that exemplars are drawn from; none where there are no exemplars.

    Args:
        task: Of lm-eval.
        num_fewshot: Of the run; None is the task's own.
    """
    own = task.get_config("num_fewshot")
    # A task that says 0 keeps it, whatever a run asks for.
    if not own if num_fewshot is None or own == 0 else not num_fewshot:
        return []
    return list(getattr(getattr(task, "sampler", None), "df", None) or task.fewshot_docs() or [])


def code(task: Any) -> dict[str, str]:
    """By name, the digest of each file that a task's functions are in or import from beside them.

    Of this package, the functions themselves are in the task's definition; files of installed
    packages that its functions import are left out.
    """
    wanted = [task.config, *([] if _is_lm_evals(type(task)) else [type(task)])]
    roots = {file for one in _callables(wanted) if (file := _file_of(one))}
    found: dict[str, set[str]] = {}
    for root in roots:
        for file in _with_imports(root, set()):
            name = Path(os.path.relpath(file, root.parent)).as_posix()
            content = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
            found.setdefault(name, set()).add(content)
    return {name: "+".join(sorted(digests)) for name, digests in sorted(found.items())}


def _as_text(document: Any) -> str:
    try:
        return json.dumps(document, default=_plain)
    except (TypeError, ValueError):  # keys that are no texts, or what contains itself
        return _PLACE.sub("", repr(document))


def _plain(value: Any) -> str:
    """What JSON has no word for: pictures, sounds, numbers of other libraries."""
    data = value if isinstance(value, bytes) else getattr(value, "tobytes", bytes)()
    return hashlib.sha256(data).hexdigest() if data else _PLACE.sub("", repr(value))


def _is_lm_evals(kind: type) -> bool:
    return kind.__module__ == "lm_eval.api.task"


def _callables(value: Any) -> Iterator[Any]:
    """Every function or class in a task's config, however deep."""
    if callable(value):
        yield value
        if isinstance(value, functools.partial):
            yield from _callables([value.func, value.args, value.keywords])
    elif dataclasses.is_dataclass(value):  # lm-eval's is a mapping, too, but an empty one
        yield from _callables([getattr(value, field.name) for field in dataclasses.fields(value)])
    elif isinstance(value, Mapping):
        yield from _callables(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _callables(one)


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
