"""Where the files of a benchmark come from: the Hub, a local folder, or a (locked) zip file.

The user says so once per run, with ``--metadata '{"data_dir": "…"}'`` or `TRIMIX_DATA_DIR`; without
either the files come from the Hub, at a pinned commit where one is known. Nothing is searched in a
second place if the first fails: numbers should not depend on what happens to lie around.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import zipfile
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from trimix_lm_eval.loading import hub
from trimix_lm_eval.tasklib import hub_files
from trimix_lm_eval.utils.errors import TrimixError, install_excepthook, unknown
from trimix_lm_eval.utils.paths import expanded

#: Below lm-eval's own logger, so that what it is told is seen under lm-eval's --verbosity.
logger = logging.getLogger("lm_eval.trimix")

#: What ``--metadata`` may hold for the tasks of this package.
OPTIONS = ("data_dir", "data_password", "data_revision", "exemplars")
#: Every file that this process has read: where it was found, and the SHA-256 of its content. A
#: results file repeats it, for scores on other data cannot be compared.
USED: dict[str, dict[str, str]] = {}
#: Folders below `data_dir` in which the released archives keep their files.
_INSIDE = ("", "data", "data/annotated")
_AES = 99  # the compression type that marks a zip member as locked with AES


class Benchmark(NamedTuple):
    """A published set of files, at a commit on the Hub; ``main`` if none could be confirmed."""

    name: str
    repository: str
    revision: str


class File(NamedTuple):
    """One file: its path on the Hub, and those in other releases, which are tried before it."""

    hub: str
    local: tuple[str, ...] = ()


class Content(NamedTuple):
    """The bytes of a file, where it is for messages, and under which of its names it was found."""

    data: bytes
    where: str
    file: str


class Place(NamedTuple):
    """Where the user says that files are: a folder or a zip file, or without a path the Hub."""

    path: Path | None
    password: str | None
    revision: str


def options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `OPTIONS` that lm-eval passes to a task, beside entries of its own.

    Raises:
        TrimixError: A name is nearly one of them.
    """
    for name in given:
        if name not in OPTIONS and get_close_matches(name, OPTIONS, cutoff=0.85):
            raise unknown("option in --metadata", name, OPTIONS)
    return {name: given[name] for name in OPTIONS if name in given}


def place_of(
    benchmark: Benchmark,
    data_dir: str | Mapping[str, str] | None = None,
    data_password: str | None = None,
    data_revision: str | None = None,
    **_: Any,
) -> Place:
    """Read a user's options.

    Args:
        benchmark: Whose files are meant.
        data_dir: A folder or zip file, or a mapping from names of benchmarks to such; benchmarks
            that it does not name come from the Hub. None: `TRIMIX_DATA_DIR`, else the Hub.
        data_password: Of the zip file. None: `TRIMIX_DATA_PASSWORD`.
        data_revision: A commit, tag or branch on the Hub instead of the pinned one.

    Raises:
        TrimixError: `data_dir` is neither, or there is nothing at that path.
    """
    install_excepthook()  # whichever model lm-eval runs, its users get messages, not tracebacks
    for name, value in (("data_password", data_password), ("data_revision", data_revision)):
        if value is not None and not isinstance(value, str):
            raise TrimixError(
                f"{name} is {value!r}, not a text; lm-eval reads digits as a number.",
                f'write it in JSON, in quotation marks: --metadata \'{{"{name}": "…"}}\'',
            )
    given = data_dir or os.environ.get("TRIMIX_DATA_DIR") or None
    if isinstance(given, Mapping):
        for name in given:
            if name != benchmark.name and get_close_matches(str(name), [benchmark.name]):
                raise unknown("benchmark in data_dir", str(name), [benchmark.name])
        given = given.get(benchmark.name)
    if given is not None and not isinstance(given, str):
        raise TrimixError(
            f"data_dir is {given!r}.", "give a path, or a mapping from benchmark to path"
        )
    path = expanded("data_dir", given) if given else None
    if path and not (os.path.isdir(path) or os.path.isfile(path)):  # a pipe might never end
        raise TrimixError(
            f"{benchmark.name}: there is no folder or zip file {path}.",
            "correct data_dir in --metadata (or TRIMIX_DATA_DIR), or leave it out to use the Hub",
        )
    if path:
        _say(f"{benchmark.name}: data of {path}")
    password = data_password or os.environ.get("TRIMIX_DATA_PASSWORD") or None
    return Place(path, password, data_revision or benchmark.revision)


@functools.cache
def _say(message: str) -> None:
    """Log a line once per process."""
    logger.info(message)


def fetch(benchmark: Benchmark, file: File, place: Place) -> Content:
    """Read one file, and note in `USED` what was read."""
    content = _read(benchmark, file, place)
    digest = hashlib.sha256(content.data).hexdigest()
    USED[f"{benchmark.name}/{content.file}"] = {"from": content.where, "sha256": digest}
    return content


def _read(benchmark: Benchmark, file: File, place: Place) -> Content:
    """The bytes of a file, from wherever it is."""
    if place.path is None:
        repository = _repository(benchmark, place)
        path = hub_files.download(repository, file.hub)
        commit = hub_files.commit_of(repository)
        _say(f"{benchmark.name}: data of {benchmark.repository} at {commit}")
        where = f"{benchmark.repository}@{commit}/{file.hub}"
        return Content(path.read_bytes(), where, file.hub)
    if place.path.is_dir():
        name, found = _find(benchmark, file, place.path)
        try:
            return Content(found.read_bytes(), str(found), name)
        except OSError as error:
            raise TrimixError(
                f"{benchmark.name}: {found} cannot be read: {error.strerror}.",
                "see to its permissions, or give another copy as data_dir",
            ) from error
    return _from_zip(benchmark, file, place.path, place.password)


def reach(benchmark: Benchmark, files: list[File], place: Place) -> str:
    """See whether files could be fetched, without downloading any; where they are, in a word.

    Raises:
        TrimixError: As `fetch`.
    """
    if place.path is None:
        return hub_files.reach(_repository(benchmark, place), [file.hub for file in files])
    for file in files:
        if place.path.is_dir():
            _find(benchmark, file, place.path)
        else:
            _from_zip(benchmark, file, place.path, place.password, size=1)
    return "zip" if place.path.is_file() else "folder"


def _find(benchmark: Benchmark, file: File, folder: Path) -> tuple[str, Path]:
    """The first of a file's names that is in a folder."""
    tops = ("", benchmark.name, benchmark.repository.rpartition("/")[2])
    for name in _names(file):
        for top in tops:
            for inside in _INSIDE:
                path = folder / top / inside / name
                if path.is_file():
                    return name, path
    zips = sorted(folder.glob("*.zip"))
    hint = f"; to read {zips[0].name} give its own path as data_dir" if zips else ""
    raise TrimixError(
        f"{benchmark.name}: {folder} has no {' or '.join(_names(file))} "
        "(nor below data/ or a folder named after the benchmark).",
        f"give the folder that contains these files{hint}; data_dir may also map benchmarks to "
        "places, and those left out come from the Hub",
    )


def _names(file: File) -> list[str]:
    return [*file.local, file.hub]


def _from_zip(
    benchmark: Benchmark, file: File, path: Path, password: str | None, size: int = -1
) -> Content:
    """Read a file, or its first bytes, out of an archive, at whatever depth its folders begin."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # whatever its parts raise: a name may not even be UTF-8
        raise TrimixError(
            f"{benchmark.name}: {path} cannot be read as a zip file: {error}.",
            "download it again, or give the folder with its unpacked files",
        ) from error
    with archive:
        for name in _names(file):
            found = list(_members(archive, name))
            if len(found) > 1:
                raise TrimixError(
                    f"{benchmark.name}: {path} holds {name} {len(found)} times: "
                    f"{', '.join(member.filename for member in found)}.",
                    "unpack it and give the folder of one of the releases",
                )
            for member in found:
                where = f"{path}/{member.filename}"
                return Content(_unlock(archive, member, where, password, size), where, name)
    raise TrimixError(
        f"{benchmark.name}: {path} has no {' or '.join(_names(file))} in it.",
        "give an archive that has it, or the folder with the unpacked files; data_dir may also map "
        "benchmarks to places, and those left out come from the Hub",
    )


def _members(archive: zipfile.ZipFile, name: str) -> Iterator[zipfile.ZipInfo]:
    """The members whose path ends in a name, but for the resource forks that macOS adds."""
    for member in archive.infolist():
        path = member.filename
        if (path == name or path.endswith(f"/{name}")) and not path.startswith("__MACOSX/"):
            yield member


def _unlock(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str, password: str | None, size: int
) -> bytes:
    """The first `size` bytes of a member; -1 for all."""
    give = 'give it: --metadata \'{"data_password": "…"}\' or TRIMIX_DATA_PASSWORD'
    if member.compress_type == _AES:
        raise TrimixError(
            f"{where} is locked with AES, which Python cannot open.",
            "unpack the archive (7z x, bsdtar -xf) and give the folder as data_dir",
        )
    if member.flag_bits & 1 and not password:
        raise TrimixError(f"{where} is locked with a password.", f"{give} (its authors publish it)")
    try:
        with archive.open(member, pwd=password.encode() if password else None) as opened:
            return opened.read(size)
    except Exception as error:  # of any decompressor: OSError, EOFError, LZMAError, zlib.error
        if member.flag_bits & 1:
            # The format keeps one byte to recognise a wrong password; it is right by chance once
            # in 256 times, and then the content does not unpack.
            raise TrimixError(f"{where} does not open with this password.", give) from error
        cause = str(error) or type(error).__name__
        raise TrimixError(f"{where} is damaged: {cause}.", "download the archive again") from error


def _repository(benchmark: Benchmark, place: Place) -> hub.Repository:
    return hub.Repository(benchmark.name, benchmark.repository, place.revision, "dataset")
