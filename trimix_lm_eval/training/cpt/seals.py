"""Checksums of what a later run reads back, so that damage is found before a number depends on it.

A *record* is a JSON object with the SHA-256 of its other keys. A *sealed* folder has a record of
its files, written after all of them: where the seal is missing, not all of them are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimix_lm_eval.utils import io
from trimix_lm_eval.utils.io import sha256

SEAL = "sealed.json"
_KEY = "checksum"


def write_record(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with its checksum."""
    io.write_json(file, {**content, _KEY: _checksum(content)})


def read_record(file: Path) -> dict[str, Any] | None:
    """The content of a record; None if it is not there, damaged, or has no checksum."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    checksum = content.pop(_KEY, None)
    return content if checksum == _checksum(content) else None


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder but its seal, by path in the folder."""
    return {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(SEAL)
    }


def seal(folder: Path) -> None:
    """Mark a folder as whole, all files of which are written."""
    write_record(folder / SEAL, {"files": contents(folder)})


def sealed(folder: Path) -> dict[str, str]:
    """What `contents` was when a folder was sealed; nothing if that cannot be told."""
    return (read_record(folder / SEAL) or {}).get("files", {})


def faults(folder: Path) -> list[str] | None:
    """The files of a folder that are not as they were sealed; None of a folder without a seal.

    Files that the seal does not name are passed over.
    """
    if not (folder / SEAL).exists():
        return None
    known = sealed(folder)
    return changed(folder, known) if known else [SEAL]


def changed(folder: Path, known: Mapping[str, str]) -> list[str]:
    """The files of a folder that are not what they are known to be, see `contents`."""
    return [name for name, digest in known.items() if _sha256_or_none(folder / name) != digest]


def _sha256_or_none(path: Path) -> str | None:
    try:
        return sha256(path) if path.is_file() else None
    except OSError:
        return None


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
