"""A variant's folder of results: written beside its place, moved there when all of it is there.

    <output_path>/<setting>/<variant>/fingerprint.json      what the numbers depend on, and the
                                                            digests of the other files
    <output_path>/<setting>/<variant>/<model>/results_<date>.json, samples_<task>_<date>.jsonl

What lies in the place is finished, and never written over. It is read again before it counts as
there: a file that is gone, or not as it was written, is an error that names it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

from trimix_lm_eval.loading.provenance import compared
from trimix_lm_eval.utils import io
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.paths import printable

_FINGERPRINT = "fingerprint.json"
#: In the fingerprint, beside what the numbers depend on: the digest of each file.
_FILES = "files"
_RESULTS = re.compile(r"/results_[^/]*\.json$")


def finished(folder: Path, identity: dict[str, Any], output: Path) -> bool:
    """Whether a variant's results are there, all of them as they were written.

    Args:
        folder: Its place.
        identity: What its numbers would depend on, see `fingerprint.identities`.
        output: The sweep's ``output_path``: who is refused one variant is refused all of them.

    Raises:
        TrimixError: Something else is there, or something has happened to it.
    """
    if not os.path.lexists(folder):
        return False
    hint = f"give this sweep another output_path than {output}, or move away what is in there"
    theirs = _fingerprint(folder)
    if theirs is None:
        raise TrimixError(
            f"{folder} is in the way: it holds no results of a sweep that can be read.", hint
        )
    written = theirs.pop(_FILES, None)
    if not isinstance(written, dict):
        raise TrimixError(
            f"{folder} holds results of an earlier version, which did not note what documents they "
            "are of: whether they are those of today cannot be told.",
            hint,
        )
    if differences := "; ".join(islice(compared(theirs, identity), 5)):
        raise TrimixError(
            f"{folder} holds other results than are asked for: {differences}.",
            f"delete that folder to have it run anew, or {hint}",
        )
    for name, digest in written.items():
        if reason := _fault(folder, name, digest):
            raise TrimixError(
                f"{folder} is finished, but its {printable(name)[:200]} {reason}.",
                "delete that folder: the same command makes its results anew",
            )
    return True


def _fault(folder: Path, name: str, digest: object) -> str:
    """What has happened to a file that a fingerprint names; nothing if it is as it was written.

    The name may be anything by now, a device among others: only a file of the folder is read.
    """
    try:
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
        if not inside or not (folder / name).is_file():
            return "is gone"
        return "" if _digest(folder / name) == digest else "is not as it was written"
    except ValueError:  # a path cannot have it
        return "is gone"
    except (OSError, RuntimeError) as error:  # the latter of a circle of links, before Python 3.13
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def results_of(folder: Path) -> Path:
    """The results file of a finished variant, whatever somebody may have added to it.

    Raises:
        TrimixError: It has none any more.
    """
    written = (_fingerprint(folder) or {}).get(_FILES)
    for name in written if isinstance(written, dict) else ():
        if _RESULTS.search(name):
            return folder / name
    raise TrimixError(
        f"The results in {folder} are gone.", "delete that folder, and run the same command again"
    )


def _fingerprint(folder: Path) -> dict[str, Any] | None:
    """What a folder's fingerprint says; None if it cannot be read."""
    try:
        found = json.loads((folder / _FINGERPRINT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def write(
    folder: Path,
    staging_dir: Path,
    identity: dict[str, Any],
    tracker: Any,
    results: dict[str, Any],
    log_samples: bool,
) -> None:
    """Write a variant's results as lm-eval does, and put them in their place at once.

    Args:
        folder: Their place.
        staging_dir: Where ``tracker`` writes, on the same disk; moved away by this.
        identity: What the numbers depend on.
        tracker: lm-eval's ``EvaluationTracker``.
        results: Of `simple_evaluate`.
        log_samples: Whether to write the samples, too.

    Raises:
        TrimixError: They cannot be written.
    """
    samples: dict[str, Any] = results.pop("samples") if log_samples else {}
    try:
        tracker.save_results_aggregated(results=results, samples=samples or None)
        for task in samples:
            tracker.save_results_samples(task_name=task, samples=samples[task])
        _check(staging_dir, samples)
        written = {
            file.relative_to(staging_dir).as_posix(): _digest(file)
            for file in sorted(staging_dir.rglob("*"))
            if file.is_file()
        }
        io.write_json(staging_dir / _FINGERPRINT, {**identity, _FILES: written})
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging_dir.rename(folder)
    except (OSError, ValueError) as error:
        raise TrimixError(
            f"The results cannot be written to {folder}: {error}",
            "make room or see to its permissions, then run the same command again",
        ) from error


def clear(staging_dir: Path) -> None:
    """Make an empty folder of what an earlier process may have left half done."""
    shutil.rmtree(staging_dir, ignore_errors=True)
    staging_dir.mkdir(parents=True, exist_ok=True)


def _check(staging_dir: Path, samples: dict[str, Any]) -> None:
    """Read back what lm-eval wrote: it logs an error of writing, and goes on."""
    files = sorted(staging_dir.glob("*/results_*.json"))
    if not files:
        raise ValueError("lm-eval wrote no results file")
    json.loads(files[0].read_text(encoding="utf-8"))
    date = files[0].stem.removeprefix("results_")
    for task, documents in samples.items():
        # Not by a pattern: one task's name may be the beginning of another's.
        file = files[0].parent / f"samples_{task}_{date}.jsonl"
        with file.open("rb") as stream:
            lines = sum(line.endswith(b"\n") for line in stream)
        if lines != len(documents):
            raise ValueError(f"{file.name} is not whole")


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
