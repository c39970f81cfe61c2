"""lm-eval's own tasks, read once: its index opens fourteen thousand YAML files, in five seconds.

What was read is kept between runs of the tests, for as long as those files stay as they are. Every
index still gets its own copy of each, by lm-eval's own code.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

#: Where they are kept; None if they are not.
kept: Path | None = None
#: What a new interpreter runs at its start, see `sitecustomize`.
SITE = """
import sys
from pathlib import Path
from trimix_lm_eval import _autoload

def take(index):
    sys.path.append({root!r})
    from tests.support import lm_eval_tasks
    sys.path.remove({root!r})
    lm_eval_tasks.use(lm_eval_tasks.load(Path({file!r})))

_autoload._AFTER_IMPORT["lm_eval.tasks._index"] = take
"""


def read(folder: Path) -> Path:
    """Read all tasks, unless that was done before; returns the file in which they are kept."""
    from lm_eval import tasks
    from lm_eval.tasks import _index

    files = sorted(Path(tasks.__file__).parent.rglob("*.yaml"))
    states = [(str(file), os.stat(file).st_mtime_ns) for file in files]
    file = folder / f"{hashlib.sha256(repr(states).encode()).hexdigest()[:16]}.pickle"
    if not file.exists():
        found: dict[str, bytes] = {}
        for path in files:
            with contextlib.suppress(Exception):  # lm-eval passes over what it cannot read
                found[str(path)] = pickle.dumps(_index.load_yaml(path, resolve_func=False))
        file.with_suffix(".new").write_bytes(pickle.dumps(found))
        file.with_suffix(".new").rename(file)
    return file


def load(file: Path) -> dict[str, bytes]:
    """What is kept: by path, what was read."""
    global kept
    kept = file
    return pickle.loads(file.read_bytes())


def use(found: dict[str, bytes]) -> None:
    """Let the indices of this process take what was kept, and read this package's tasks once."""
    from lm_eval.tasks import _index

    from trimix_lm_eval.utils.paths import tasks_dir

    load_yaml = _index.load_yaml
    ours = tasks_dir()

    def kept_yaml(
        path: Path, *, resolve_func: bool = True, recursive: bool = True
    ) -> dict[str, Any]:
        if recursive and not resolve_func:
            if str(path) not in found and Path(path).is_relative_to(ours):
                made = load_yaml(path, resolve_func=False)
                found[str(path)] = pickle.dumps(made)
            if str(path) in found:
                return pickle.loads(found[str(path)])
        return load_yaml(path, resolve_func=resolve_func, recursive=recursive)

    _index.load_yaml = kept_yaml


def sitecustomize(folder: Path) -> str:
    """Write what lets new interpreters with this folder as PYTHONPATH take what was kept."""
    folder.mkdir()
    if kept:
        text = SITE.format(root=str(Path(__file__).parent.parent.parent), file=str(kept))
        (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    return str(folder)
