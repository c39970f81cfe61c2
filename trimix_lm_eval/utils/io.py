"""Write files: each is there as a whole or not at all.

A file is written beside its place and moved there when all of it is on the disk. A reader never
sees half of one, and a process that dies leaves the old file as it was.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

from trimix_lm_eval.utils.errors import TrimixError

#: What the system says of a disk, or a user's share of one, that is full.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write(path: Path, content: str | bytes, hint: str = "see to its permissions") -> None:
    """Write a file, and make the folders that it needs.

    Args:
        path: Its place. What is there is replaced; a link is followed.
        content: Text is written as UTF-8, with line ends as they are.
        hint: What a user can do if the place cannot be written to.

    Raises:
        TrimixError: It cannot be written. What was there before is still there.
    """
    data = content.encode() if isinstance(content, str) else content
    target = Path(os.path.realpath(path))
    part = target.with_name(f"{target.name}.part")
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)  # a pipe or a device, which no file must take the place of
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(data)
            os.replace(part, target)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise not_written(path, error, hint) from error


def write_json(path: Path, content: Any, hint: str = "see to its permissions") -> None:
    """Write JSON values, as `write` does."""
    write(path, json.dumps(content, ensure_ascii=False, indent=1), hint)


def not_written(path: Path, error: OSError, hint: str) -> TrimixError:
    """The error for a place that cannot be written to; of a full disk it says what helps."""
    if error.errno in _FULL:
        hint = f"make room on the disk, or {hint}"
    return TrimixError(f"{path} cannot be written: {error.strerror or error}.", hint)
