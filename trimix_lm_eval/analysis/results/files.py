"""Files that anybody may have written: found below folders, read as text, and as JSON.

A file that cannot be used is a `ValueError` whose text goes on where the file's name ends: "is
empty". What `json` lets pass and nothing behind it could work with ends here: a key that an object
has twice, of which the last would count unseen; whole numbers beyond the largest float; halves of
characters, which no file can be written with.
"""

from __future__ import annotations

import json
import math
import os
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from trimix_lm_eval.utils import paths
from trimix_lm_eval.utils.validation import each_once

#: What is shown of a results file outside of the current folder: of a sweep its setting, variant
#: and model.
FILE_PARTS = 4
#: Levels of objects and lists; lm-eval's files have fewer than ten.
_DEEPEST = 100
#: In JSON, the escape of one half of a character, or of both.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class Problem(NamedTuple):
    """A file that could not be used, and what is wrong with it, in a sentence."""

    path: Path
    what: str

    @property
    def file(self) -> str:
        """The file, as pages and tables show it."""
        return paths.shown(self.path, FILE_PARTS)


def find(folder: Path, ending: str, start: str = "") -> tuple[list[Path], list[Problem]]:
    """The files below a folder whose names start and end so, without those in hidden folders.

    A sweep is still writing in a hidden folder. Links to folders are not followed.

    Returns:
        The files, sorted; and the folders that cannot be read.
    """
    problems: list[Problem] = []

    def note(error: OSError) -> None:
        problems.append(Problem(Path(error.filename), f"cannot be read: {error.strerror}"))

    found = []
    for place, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(place, name)
            for name in names
            if name.startswith(start) and name.endswith(ending) and not name.startswith(".")
        ]
    return sorted(found), problems


def text_of(path: Path) -> str:
    """A file's text: UTF-8, or UTF-16 and UTF-32 as some editors and shells write them.

    Raises:
        ValueError: It is none that can be read.
    """
    try:
        # A pipe or a device may never end.
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("is no file but a folder, a pipe or a device")
        data = path.read_bytes()
        return data.decode(json.detect_encoding(data))
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError("is not text") from error


def json_of(text: str, with_halves: bool = False) -> Any:
    """The values that a JSON text holds.

    Args:
        text: The JSON.
        with_halves: Whether to leave half characters in it, for a reader that replaces them
            itself; otherwise they become question marks.

    Raises:
        ValueError: It is not JSON, an object has a key twice, or it is nested too deeply.
    """
    if not text.strip():
        raise ValueError("is empty")
    try:
        found = _loads(text)
        if not with_halves and _HALF.search(text):
            whole = json.dumps(found, ensure_ascii=False).encode("utf-8", "replace")
            found = _loads(whole.decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON, or not all of it is there ({error})") from error
    except RecursionError as error:
        raise ValueError("is not JSON that can be read: it is nested too deeply") from error
    if _is_deep(found):
        raise ValueError(f"is nested more than {_DEEPEST} levels deep")
    return found


def _loads(text: str) -> Any:
    says = "is ambiguous: an object in it has the key {} twice"
    return json.loads(text, object_pairs_hook=partial(each_once, says=says), parse_int=_whole)


def _whole(digits: str) -> float:
    """A whole number; infinite beyond the largest float, as JSON's other numbers are."""
    return int(digits) if math.isfinite(float(digits)) else float(digits)


def _is_deep(value: Any) -> bool:
    level: list[Any] = [[value]]
    for _ in range(_DEEPEST + 1):
        parts = (it.values() if isinstance(it, dict) else it for it in level)
        level = [part for some in parts for part in some if isinstance(part, (dict, list))]
        if not level:
            return False
    return True
