"""A variant's folder of results: written beside its place, moved there when all of it is there.

    <output_path>/<setting>/<variant>/fingerprint.json      what the numbers depend on
    <output_path>/<setting>/<variant>/<model>/results_<date>.json, samples_<task>_<date>.jsonl

What lies in the place is finished, and never written over.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from trimix_lm_eval.loading.provenance import compared
from trimix_lm_eval.utils import io
from trimix_lm_eval.utils.errors import TrimixError

_FINGERPRINT = "fingerprint.json"


def finished(folder: Path, identity: dict[str, Any], output: Path) -> bool:
    """Whether a variant's results are there.

    Args:
        folder: Its place.
        identity: What its numbers would depend on, see `fingerprint.identities`.
        output: The sweep's ``output_path``: who is refused one variant is refused all of them.

    Raises:
        TrimixError: Something else is there.
    """
    if not folder.exists():
        return False
    hint = f"give this sweep another output_path than {output}, or move away what is in there"
    try:
        theirs = json.loads((folder / _FINGERPRINT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrimixError(
            f"{folder} is in the way: it holds no results of a sweep that can be read.", hint
        ) from error
    differences = list(compared(theirs, identity))
    if differences:
        shown = "; ".join(differences[:5])
        raise TrimixError(f"{folder} holds the results of another sweep: {shown}.", hint)
    if not results_of(folder):
        raise TrimixError(
            f"{folder} is finished, but its results_*.json is gone.", "delete that folder"
        )
    return True


def results_of(folder: Path) -> list[Path]:
    """The results files of a variant: one, unless somebody added to it."""
    return sorted(folder.glob("*/results_*.json"))


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
        io.write_json(staging_dir / _FINGERPRINT, identity)
        _check(staging_dir, samples)
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
    files = results_of(staging_dir)
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
