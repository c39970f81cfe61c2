"""What a command may write over: its own files of before, nobody else's, and not what it reads."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.paths import shown

#: A page says within so many bytes which command wrote it.
_HEAD = 4096


def generator(command: str) -> str:
    """The tag by which a page says which command wrote it; texts from files are escaped in HTML."""
    return f'<meta name="generator" content="{command}">'


def is_page_of(path: Path, command: str) -> bool:
    """Whether a file is a page that a command wrote."""
    return generator(command).encode() in (_content(path, _HEAD) or b"")


def keep_others(files: Mapping[Path, str], command: str = "") -> None:
    """Make sure that no file would be replaced which somebody else wrote.

    Args:
        files: What is to be written. Where the same is there already, that is no matter.
        command: Pages of this command may be replaced by others of it. Other files may not, for
            somebody may have added to them by hand.

    Raises:
        TrimixError: One would be.
    """
    for path, text in files.items():
        if not os.path.lexists(path) or _content(path) == text.encode():
            continue
        if not (command and is_page_of(path, command)):
            what = f"which is no page of {command}" if command else "with other content"
            raise TrimixError(
                f"{shown(path)} is there already, {what}.",
                "give another --output, or move it away",
            )


def _content(path: Path, most: int = -1) -> bytes | None:
    """The first bytes of a file; None if it is none."""
    try:
        if not os.path.isfile(path):
            return None
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise TrimixError(
            f"{shown(path)} cannot be read: {error.strerror or error}.", "give another --output"
        ) from error


def keep_inputs(outputs: Iterable[tuple[str, Path]], inputs: Iterable[tuple[str, Path]]) -> None:
    """See that nothing that is to be written takes the place of what is read, or of one another.

    Both are names for messages, each with its place.

    Raises:
        TrimixError: Two of them are one file, whatever paths and links lead to it.
    """
    written = list(outputs)
    known = list(inputs)
    for name, path in written:
        for other, there in known:
            if _same_file(path, there):
                raise TrimixError(
                    f"{name} and {other} are the same file, {path}.",
                    f"give {name} another place: what is written there replaces the file",
                )
        known.append((name, path))


def _same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, there or not yet; devices and pipes take any number."""
    try:
        found, second = os.stat(one), os.stat(other)
        return stat.S_ISREG(found.st_mode) and os.path.samestat(found, second)
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            return os.path.realpath(one) == os.path.realpath(other)
        return False


def is_device(path: Path) -> bool:
    """Whether a path is a device that may give bytes without end; a terminal ends its input."""
    try:
        if not stat.S_ISCHR(os.stat(path).st_mode):
            return False
        with path.open("rb", buffering=0) as stream:
            return not stream.isatty()
    except (OSError, ValueError):
        return False
