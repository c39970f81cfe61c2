"""Write files, each as a whole or not at all; and read YAML.

A file is written beside its place and moved there when all of it is on the disk. A reader never
sees half of one, and a process that dies leaves the old file as it was.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from trimix_lm_eval.utils.errors import TrimixError

#: What the system says of a disk, or a user's share of one, that is full.
_FULL = (errno.ENOSPC, errno.EDQUOT)

#: Of a YAML file: values in all, lists in lists, bits of a number.
_MOST_VALUES, _MOST_DEPTH, _MOST_BITS = 10**6, 50, 10_000


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


def write_json(path: Path, content: Any) -> None:
    """Write JSON values, as `write` does."""
    write(path, json.dumps(content, ensure_ascii=False, indent=1))


def not_written(path: Path, error: OSError, hint: str) -> TrimixError:
    """The error for a place that cannot be written to; of a full disk it says what helps."""
    if error.errno in _FULL:
        hint = f"make room on the disk, or {hint}"
    return TrimixError(f"{path} cannot be written: {error.strerror or error}.", hint)


def read_yaml(path: Path, hint: str = "correct the file or its path") -> dict[str, Any]:
    """Read a YAML file that holds a mapping, or nothing.

    ``1:1`` is read as it is written, though YAML 1.1 takes it for a time of day; ``!function f``
    is the text ``f``. A key that a mapping has twice is an error, as YAML has it: PyYAML takes the
    last without a word.

    Raises:
        TrimixError: It cannot be read, is not YAML, or holds something else; with the hint.
    """
    import yaml

    try:
        with path.open(encoding="utf-8") as file:  # whose name PyYAML's errors tell
            content = yaml.load(file, _loader())
    except OSError as error:
        raise TrimixError(f"{path} cannot be read: {error.strerror or error}.", hint) from error
    # ValueError of dates that there are not, RecursionError of thousands of brackets.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise TrimixError(f"{path} is not YAML: {error}", hint) from error
    if not _is_of_use(content):
        raise TrimixError(
            f"{path} holds a number of thousands of digits, or lists in lists without end.", hint
        )
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise TrimixError(f"{path} is no mapping.", hint)
    return content


def _is_of_use(content: Any) -> bool:
    """Whether YAML is no larger than what people write, its aliases written out.

    A number that Python refuses to print cannot even be named in a message.
    """
    left = [(content, 0)]
    for _ in range(_MOST_VALUES):
        if not left:
            return True
        value, depth = left.pop()
        if depth > _MOST_DEPTH or (isinstance(value, int) and value.bit_length() > _MOST_BITS):
            return False
        inside = value if isinstance(value, list) else ()
        inside = [*value, *value.values()] if isinstance(value, dict) else inside
        left += ((one, depth + 1) for one in inside)
    return False


@cache
def _loader() -> Any:
    """A class of our own: what is added to it does not leak into everybody's SafeLoader."""
    import yaml

    class _Loader(yaml.SafeLoader):
        """Reads what `read_yaml` reads."""

        def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
            """A number, or what has a colon in it."""
            text = self.construct_scalar(node)
            return text if ":" in text else super().construct_yaml_int(node)

        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            """A mapping as it is written, each key once."""
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if (key.tag, key.value) in seen:
                    told = f"found the key {key.value!r:.80} twice"
                    raise yaml.MarkedYAMLError(problem=told, problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
            return node

    _Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
    _Loader.add_multi_constructor("!", lambda loader, _, node: str(node.value))
    return _Loader
