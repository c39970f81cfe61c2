"""What a command may write over: its own files of before, and nobody else's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.paths import shown

#: A page says within so many bytes which command wrote it.
_HEAD = 4096


def generator(command: str) -> str:
    """The tag by which a page says which command wrote it; texts from files are escaped in HTML."""
    return f'<meta name="generator" content="{command}">'


def is_page_of(path: Path, command: str) -> bool:
    """Whether a file is a page that a command wrote.

    Raises:
        TrimixError: It cannot be read.
    """
    try:
        if not os.path.isfile(path):
            return False
        with path.open("rb") as file:
            return generator(command).encode() in file.read(_HEAD)
    except OSError as error:
        raise TrimixError(
            f"{shown(path)} cannot be read: {error.strerror or error}.", "give another --output"
        ) from error


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
        try:
            there = os.path.lexists(path)
            same = os.path.isfile(path) and path.read_bytes() == text.encode()
        except OSError as error:
            raise TrimixError(
                f"{shown(path)} cannot be looked at: {error.strerror or error}.",
                "give another --output",
            ) from error
        if there and not same and not (command and is_page_of(path, command)):
            what = f"which is no page of {command}" if command else "with other content"
            raise TrimixError(
                f"{shown(path)} is there already, {what}.",
                "give another --output, or move it away",
            )
