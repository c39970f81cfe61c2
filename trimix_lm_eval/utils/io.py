"""Write files, each as a whole or not at all; and know them by their content.

A file is written beside its place and moved there when all of it is on the disk. A reader never
sees half of one, and a process that dies leaves the old file as it was.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimix_lm_eval.utils.errors import TrimixError

#: What the system says of a disk, or a user's share of one, that is full.
_FULL = (errno.ENOSPC, errno.EDQUOT)

_PIECE_BYTES = 2**22


def write(path: Path, content: str | bytes, hint: str = "see to its permissions") -> None:
    """Write a file, and make the folders that it needs.

    Text is written as UTF-8, with line ends as they are. What is there is replaced; a link is
    followed.

    Raises:
        TrimixError: It cannot be written, with the hint. What was there before is still there.
    """
    data = content.encode() if isinstance(content, str) else content
    with _named(path, hint):
        target, part = _places(path)
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


def check_place(path: Path, hint: str = "see to its permissions") -> None:
    """See that `write` can write to a place, before the work whose result goes there.

    The folders that it needs are made.

    Raises:
        TrimixError: It is a folder, has a name that no file can have, or is not for us to write.
    """
    with _named(path, hint):
        target, part = _places(path)
        if target.is_dir():
            raise TrimixError(f"{path} is a folder.", "name a file to write")
        if target.exists() and not target.is_file():
            if not os.access(target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()


def _places(path: Path) -> tuple[Path, Path]:
    """Where a file is to be, and where it is written first."""
    target = Path(os.path.realpath(path))
    return target, target.with_name(f"{target.name}.part")


@contextlib.contextmanager
def _named(path: Path, hint: str) -> Iterator[None]:
    """Say of which file the system says what."""
    try:
        yield
    except OSError as error:
        raise not_written(path, error, hint) from error
    except ValueError as error:
        what = f"{path!s:.200} cannot be written: no file can have such a name."
        raise TrimixError(what, hint) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON values, as `write` does."""
    write(path, json.dumps(content, ensure_ascii=False, indent=1))


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, which is read a piece at a time."""
    total, piece = hashlib.sha256(), bytearray(_PIECE_BYTES)
    with path.open("rb", buffering=0) as stream:
        while size := stream.readinto(piece):
            total.update(memoryview(piece)[:size])
    return total.hexdigest()


def not_written(path: Path, error: OSError, hint: str) -> TrimixError:
    """The error for a place that cannot be written to; of a full disk it says what helps."""
    if error.errno in _FULL:
        hint = f"make room on the disk, or {hint}"
    return TrimixError(f"{path} cannot be written: {error.strerror or error}.", hint)
