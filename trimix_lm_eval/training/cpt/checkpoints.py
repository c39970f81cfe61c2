"""Which checkpoint is whole: one that was sealed after its last file was written.

A process can be killed at any moment, also while it writes a checkpoint or deletes an old one. A
seal names every file with its size, so that whatever lacks one, or has it in part, is passed over.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from trimix_lm_eval.utils import io

_SEAL = "sealed.json"


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint as whole.

    Args:
        checkpoint: Its folder, all files of which are written.
    """
    io.write_json(checkpoint / _SEAL, _files(checkpoint))


def newest(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps; what is not whole is deleted.

    Args:
        folder: Of the checkpoints.
    """
    whole = []
    for checkpoint in _checkpoints(folder):
        if _is_whole(checkpoint):
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(whole, key=steps_of, default=None)


def steps_of(checkpoint: Path) -> int:
    """How many steps a checkpoint has behind it."""
    return int(checkpoint.name.rpartition("-")[2])


def _checkpoints(folder: Path) -> Iterator[Path]:
    for path in folder.glob("checkpoint-*"):
        if re.fullmatch(r"checkpoint-\d+", path.name):
            yield path


def _is_whole(checkpoint: Path) -> bool:
    try:
        sealed = json.loads((checkpoint / _SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    there = _files(checkpoint)
    return all(there.get(name) == size for name, size in sealed.items())


def _files(checkpoint: Path) -> dict[str, int]:
    """Sizes by path, but for the seal."""
    return {
        path.relative_to(checkpoint).as_posix(): path.stat().st_size
        for path in checkpoint.rglob("*")
        if path.is_file() and not path.name.startswith(_SEAL)
    }
