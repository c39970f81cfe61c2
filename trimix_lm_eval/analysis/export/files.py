"""Write finished texts to disk: each as a whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from trimix_lm_eval.analysis.export.origins import relative
from trimix_lm_eval.utils.errors import TrimixError


def keep_others(files: Mapping[Path, str]) -> None:
    """Make sure that no file would be replaced by one with other content.

    Raises:
        TrimixError: One would: it may hold what a user has added by hand.
    """
    for path, text in files.items():
        if path.exists() and (path.is_dir() or path.read_bytes() != text.encode()):
            raise TrimixError(
                f"{relative(path)} is there already, with other content.",
                "give another --output, or move it away",
            )


def write(files: Mapping[Path, str]) -> None:
    """Write files, and the folders that they need.

    Raises:
        TrimixError: One cannot be written.
    """
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.part")
            part.write_bytes(text.encode())
            os.replace(part, path)
        except OSError as error:
            raise TrimixError(
                f"{relative(path)} cannot be written: {error.strerror or error}.",
                "give another --output",
            ) from error
