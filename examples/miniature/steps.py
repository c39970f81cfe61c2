"""Steps that are done once: each writes into a folder of its own, and a mark when it is finished.

Invariant: a folder with a mark is complete and was made by the recipe that the mark names. A step
that was killed leaves no mark and starts anew, or goes on by itself if it can and its recipe is
still the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

MARK = "step.json"
STARTED = ".started.json"  # beside the folder: the recipe of a step that goes on where it was ended


class Step(NamedTuple):
    """A piece of work.

    Attributes:
        name: Its folder, relative to that of the whole.
        needs: Names of steps whose folders it reads.
        recipe: What decides its outcome, besides those; JSON.
        make: Does it, given the folder to write to.
        resumes: It goes on from what a killed run has left in the folder.
        summary: It takes little time, and is done anew when what it sums up has changed.
    """

    name: str
    needs: tuple[str, ...]
    recipe: dict[str, Any]
    make: Callable[[Path], None]
    resumes: bool = False
    summary: bool = False


def run(steps: list[Step], out: Path, only: str | None = None) -> None:
    """Does in order what is not done yet.

    Args:
        steps: After those that they need.
        out: Folder of their folders.
        only: Do this step alone (a name, or the end of one), and none of the others.

    Raises:
        SystemExit: A folder is of another recipe, or `only` names no step, or one whose needs are
            not done.
    """
    if only and not any(_named(step, only) for step in steps):
        raise SystemExit(f"no step is called {only}; there are: {', '.join(s.name for s in steps)}")
    wanted = {step.name for step in steps if not only or _named(step, only)}
    read = {name for step in steps if step.name in wanted for name in step.needs}
    digests: dict[str, str] = {}
    for step in steps:
        identity = _identity(step, digests)
        digests[step.name] = _digest(identity)
        if step.name not in wanted | read or _done(step, out / step.name, identity):
            continue
        if step.name in wanted:
            missing = [name for name in step.needs if not (out / name / MARK).is_file()]
            if missing:
                raise SystemExit(f"{step.name} needs {', '.join(missing)}, not done yet")
            _do(step, out / step.name, identity)


def seconds(out: Path) -> dict[str, dict[str, float]]:
    """Tells how long each finished step took: wall-clock and CPU seconds, by name."""
    marks = {str(f.parent.relative_to(out)): json.loads(f.read_text()) for f in out.rglob(MARK)}
    return {name: mark["seconds"] for name, mark in sorted(marks.items())}


def _named(step: Step, only: str) -> bool:
    return step.name == only or step.name.endswith(f"/{only}")


def _identity(step: Step, digests: dict[str, str]) -> dict[str, Any]:
    """What decides a step's outcome; what it needs counts with all that decided that."""
    identity = {"recipe": step.recipe, "needs": {name: digests[name] for name in step.needs}}
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _done(step: Step, folder: Path, identity: dict[str, Any]) -> bool:
    """Whether a step is done; results of another recipe are never taken for its own."""
    if not (folder / MARK).is_file():
        return False
    found = json.loads((folder / MARK).read_text())
    if step.summary and any(identity[part] != found[part] for part in identity):
        return False
    _refuse_another(folder, found, identity)
    return True


def _refuse_another(folder: Path, found: dict[str, Any], identity: dict[str, Any]) -> None:
    """Ends the program if what was found is of another recipe, and says what differs."""
    changed = [
        f"{key} is {identity[part].get(key)!r}, was {found[part].get(key)!r}"
        for part in ("recipe", "needs")
        for key in sorted({*identity[part], *found[part]})
        if identity[part].get(key) != found[part].get(key)
    ]
    if changed:
        raise SystemExit(
            f"{folder} was made by another recipe ({'; '.join(changed)}): delete it, or give "
            "another --out"
        )


def _do(step: Step, folder: Path, identity: dict[str, Any]) -> None:
    """Does a step and marks it."""
    started = folder.with_name(folder.name + STARTED)
    if step.resumes and started.is_file():
        _refuse_another(folder, json.loads(started.read_text()), identity)
    elif folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if step.resumes:
        _write(started, identity)
    print(f"{step.name} …", flush=True)
    wall, cpu = time.perf_counter(), _cpu()
    step.make(folder)
    taken = {"wall": round(time.perf_counter() - wall, 1), "cpu": round(_cpu() - cpu, 1)}
    _write(folder / MARK, {**identity, "seconds": taken})
    started.unlink(missing_ok=True)  # later, so that nothing finished is without either
    print(f"{step.name}: {taken['wall']:.0f} s ({taken['cpu']:.0f} s of CPU)", flush=True)


def _write(path: Path, content: dict[str, Any]) -> None:
    """Writes a file that is there whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rename(path)


def _cpu() -> float:
    """CPU seconds of this process and of those that it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
