"""Every answer as soon as it is known, on disk: kill -9 loses what is in hand and no more.

One SQLite file per process in a hidden folder beside the results. Each answer is a transaction of
its own; a write-ahead log makes that cheap (some 20 microseconds), and a process that dies leaves
all of them. A file is open in one process only and locked by it, so that a second sweep into the
same folder is noticed. Answers are kept by variant and request; the variant's digest stands for
everything that numbers depend on.

Nothing is taken on trust: each row has a checksum, and a file is read from end to end when it is
opened. One that is damaged in any way is replaced by a new one with those of its rows that are as
they were written.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from trimix_lm_eval.utils import distributed
from trimix_lm_eval.utils.distributed import DistributedEnv
from trimix_lm_eval.utils.errors import TrimixError, warn_once

#: Of the tables below. A file of another version is not read.
_VERSION = 2
_TABLE = (
    "CREATE TABLE answers (variant TEXT, request BLOB, answer TEXT, checksum BLOB, "
    "PRIMARY KEY (variant, request)) WITHOUT ROWID"
)
_INSERT = "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)"
_SELECT = "SELECT variant, request, answer, checksum FROM answers"
#: What reading a damaged file ends in: its sizes may be anything, and so may the words of an error.
_UNREADABLE = (sqlite3.Error, MemoryError, UnicodeError)
#: The fewest bytes of a file that a row takes: bounds the rows of one whose pages go in circles.
_LEAST_ROW = 16

Row = tuple[str, bytes, str]


class Journal:
    """The answers of a sweep, on this process.

    Of what other processes' files in the folder, left by an earlier launch, hold, that of the
    variants (digests) that are to run is taken over.

    Raises:
        TrimixError: The files are in use, or cannot be written.
    """

    def __init__(self, folder: Path, place: DistributedEnv, variants: Collection[str]) -> None:
        self.folder, self.place = folder, place
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrimixError(
                f"{folder} cannot be made: {error.strerror}.", "give another output_path"
            ) from error
        self._db = _open(folder / f"rank{place.rank}.sqlite")
        self._take_over(variants)

    def _take_over(self, variants: Collection[str]) -> None:
        """Read what others left. Each file is opened by one process, and told to all."""
        found: list[Row] = []
        for file in sorted(self.folder.glob("rank*.sqlite")):
            number = file.stem.removeprefix("rank")
            if not number.isdecimal() or int(number) % self.place.world != self.place.rank:
                continue
            if int(number) != self.place.rank:
                with closing(_open(file)) as theirs:
                    found += [row for row in _read(theirs, file) if row[0] in variants]
            elif self.place.world > 1:
                found += [row for row in _read(self._db, file) if row[0] in variants]
        for rows in distributed.exchanged(found, self.place.world):
            self._write(rows)

    def add(self, answers: Iterable[Row]) -> None:
        """Keep some answers, all or none of them; they are safe when this returns."""
        self._write(answers)

    def answer(self, variant: str, request: bytes) -> str | None:
        """One answer, if it is there."""
        found = self._rows("variant = ? AND request = ?", variant, request)
        return found[0][2] if found else None

    def requests(self, variant: str) -> set[bytes]:
        """What is answered for a variant."""
        return {request for _, request, _ in self._rows("variant = ?", variant)}

    def answers(self, variant: str) -> dict[bytes, str]:
        """The answers of a variant, by request."""
        return {request: answer for _, request, answer in self._rows("variant = ?", variant)}

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def remove(self) -> None:
        """Delete all processes' files, on the first of them, when all are done with theirs."""
        self.close()
        distributed.wait(self.place.world)
        if self.place.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _rows(self, which: str, *values: Any) -> list[Row]:
        return _read(self._db, self.folder, which, *values)

    def _write(self, rows: Iterable[Row]) -> None:
        try:
            _insert(self._db, rows)
        except sqlite3.Error as error:
            raise TrimixError(
                f"The sweep's journal in {self.folder} cannot be written: {error}.",
                "make room or see to its permissions, then run the same command again",
            ) from error


def _open(file: Path) -> sqlite3.Connection:
    """Open a journal for this process alone; one that is damaged keeps what is sound in it.

    Raises:
        TrimixError: It is in use, or cannot be opened.
    """
    try:
        return _checked(file)
    except _UNREADABLE as error:
        if "is locked" in str(error):
            raise TrimixError(
                f"{file.parent} is in use: another sweep writes into the same output_path.",
                "wait for it, or give this one another output_path",
            ) from error
        reason = str(error)
    try:
        # SQLite's own error says which kind of trouble it is in too many ways to tell apart: what
        # cannot be read or replaced fails here again.
        rows = _salvaged(file)
        for part in file.parent.glob(f"{file.name}*"):
            part.unlink()
        db = _checked(file)
        _insert(db, rows)
    except (OSError, sqlite3.Error) as error:
        raise TrimixError(f"{file} cannot be opened: {error}.", "see to its permissions") from error
    warn_once(
        f"The journal {file} is not usable as it is ({reason}): {len(rows)} of its answers can be "
        "read and are kept, all others are made anew."
    )
    return db


def _checked(file: Path) -> sqlite3.Connection:
    """Open a file and make sure that it is a journal of this version and whole.

    Raises:
        sqlite3.Error: It cannot be opened, or is damaged.
    """
    db = _connected(file)
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        tables = [sql for (sql,) in db.execute("SELECT sql FROM sqlite_master")]
        if version not in (0, _VERSION) or tables not in ([], [_TABLE.encode()]):
            raise sqlite3.DatabaseError(f"version {version}, or made by something else")
        ((whole,),) = db.execute("PRAGMA quick_check(1)").fetchall()
        if whole != b"ok":
            raise sqlite3.DatabaseError("damaged")
        with db:
            if not tables:
                db.execute(_TABLE)
            db.execute(f"PRAGMA user_version = {_VERSION}")
        bad, last = 0, ("", b"")
        for row in map(_sound, db.execute(_SELECT)):
            # Not in order, as after a page that was overwritten by another, it would not be found.
            bad += row is None or row[:2] <= last
            last = row[:2] if row else last
        if bad:
            raise sqlite3.DatabaseError(_not_as_written(bad))
    except BaseException:
        db.close()
        raise
    return db


def _connected(file: Path) -> sqlite3.Connection:
    """A connection that locks the file at its first access and gives texts as bytes."""
    db = sqlite3.connect(file, timeout=1)
    try:
        db.text_factory = bytes  # that are no UTF-8 must not keep the other rows from being read
        # Before the first access: so no memory is shared, and network file systems will do.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        db.close()
        raise
    return db


def _salvaged(file: Path) -> list[Row]:
    """The sound rows of a damaged file, as far as SQLite gets from its beginning and its end."""
    found: dict[tuple[str, bytes], Row] = {}
    most = sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*")) // _LEAST_ROW
    for order in ("", " ORDER BY variant DESC, request DESC"):
        try:
            with closing(_connected(file)) as db:
                for row in islice(db.execute(_SELECT + order), most):
                    sound = _sound(row)
                    if sound:
                        found[sound[:2]] = sound
        except _UNREADABLE:  # there ends what can be read
            continue
    return list(found.values())


def _read(db: sqlite3.Connection, where: Path, which: str = "1", *values: Any) -> list[Row]:
    """Rows of a file that was in order when it was opened.

    Raises:
        TrimixError: It no longer is.
    """
    try:
        rows = db.execute(f"{_SELECT} WHERE {which}", values).fetchall()
        found = [row for row in map(_sound, rows) if row]
        if len(found) < len(rows):
            raise sqlite3.DatabaseError(_not_as_written(len(rows) - len(found)))
    except _UNREADABLE as error:
        raise TrimixError(
            f"The sweep's journal {where} was damaged while it was in use: {error}.",
            "run the same command again: it makes anew what is lost",
        ) from error
    return found


def _not_as_written(count: int) -> str:
    return f"{count} answer{'s' if count > 1 else ''} not as written"


def _insert(db: sqlite3.Connection, rows: Iterable[Row]) -> None:
    with db:
        db.executemany(_INSERT, ((*row, _checksum(*row)) for row in rows))


def _checksum(variant: str, request: bytes, answer: str) -> bytes:
    """Of a row: of the whole of it, so that parts of two rows that changed places are noticed."""
    parts = (variant.encode(), request, answer.encode())
    framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return hashlib.blake2b(framed, digest_size=16).digest()


def _sound(row: tuple[Any, ...]) -> Row | None:
    """A row of `_SELECT` if it is as it was written; None otherwise."""
    *parts, checksum = row
    if not all(isinstance(part, bytes) for part in parts):
        return None
    variant, request, answer = parts
    try:
        found = variant.decode(), request, answer.decode()
    except UnicodeDecodeError:
        return None
    return found if checksum == _checksum(*found) else None
