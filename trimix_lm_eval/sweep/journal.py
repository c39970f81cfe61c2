"""Every answer as soon as it is known, on disk: kill -9 loses what is in hand and no more.

One SQLite file per process in a hidden folder beside the results. Each answer is a transaction of
its own; a write-ahead log makes that cheap (some 20 microseconds), and a process that dies leaves
all of them. A file is open in one process only and locked by it, so that a second sweep into the
same folder is noticed. Answers are kept by variant and request; the variant's digest stands for
everything that numbers depend on.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Collection, Iterable
from pathlib import Path

from trimix_lm_eval.utils import distributed
from trimix_lm_eval.utils.distributed import DistributedEnv
from trimix_lm_eval.utils.errors import TrimixError, warn_once

#: Of the tables below. A file of another version is not read.
_VERSION = 1
_TABLE = (
    "CREATE TABLE IF NOT EXISTS answers (variant TEXT, request BLOB, answer TEXT, "
    "PRIMARY KEY (variant, request)) WITHOUT ROWID"
)
_INSERT = "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)"

Row = tuple[str, bytes, str]


class Journal:
    """The answers of a sweep, on this process.

    Args:
        folder: Of all processes' files; made if it is not there.
        place: Of this process.
        variants: Digests of those that are to run: what other processes' files, left by an
            earlier launch, hold of them is taken over.

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
            theirs = self._db if int(number) == self.place.rank else _open(file)
            if theirs is not self._db or self.place.world > 1:
                found += _rows(theirs, variants)
            if theirs is not self._db:
                theirs.close()
        for rows in distributed.exchanged(found, self.place.world):
            self._write(rows)

    def add(self, variant: str, request: bytes, answer: str) -> None:
        """Keep an answer; it is safe when this returns."""
        self._write([(variant, request, answer)])

    def answer(self, variant: str, request: bytes) -> str | None:
        """One answer, if it is there."""
        query = "SELECT answer FROM answers WHERE variant = ? AND request = ?"
        found = self._db.execute(query, (variant, request)).fetchone()
        return None if found is None else str(found[0])

    def requests(self, variant: str) -> set[bytes]:
        """What is answered for a variant."""
        query = "SELECT request FROM answers WHERE variant = ?"
        return {row[0] for row in self._db.execute(query, (variant,))}

    def answers(self, variant: str) -> dict[bytes, str]:
        """The answers of a variant, by request."""
        query = "SELECT request, answer FROM answers WHERE variant = ?"
        return dict(self._db.execute(query, (variant,)))

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def remove(self) -> None:
        """Delete all processes' files, on the first of them, when all are done with theirs."""
        self.close()
        distributed.wait(self.place.world)
        if self.place.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, rows: Iterable[Row]) -> None:
        try:
            with self._db:
                self._db.executemany(_INSERT, rows)
        except sqlite3.Error as error:
            raise TrimixError(
                f"The sweep's journal in {self.folder} cannot be written: {error}.",
                "make room or see to its permissions, then run the same command again",
            ) from error


def _open(file: Path) -> sqlite3.Connection:
    """Open a journal for this process alone; one that cannot be used is started anew."""
    try:
        return _checked(file)
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise TrimixError(
                f"{file.parent} is in use: another sweep writes into the same output_path.",
                "wait for it, or give this one another output_path",
            ) from error
        raise TrimixError(f"{file} cannot be opened: {error}.", "see to its permissions") from error
    except sqlite3.DatabaseError as error:
        warn_once(f"The journal {file} is not usable ({error}): answers in it are made anew.")
        for part in file.parent.glob(f"{file.name}*"):
            part.unlink()
        return _checked(file)


def _checked(file: Path) -> sqlite3.Connection:
    """Open a file and make sure that it is a journal of this version and whole."""
    db = sqlite3.connect(file, timeout=1)
    try:
        # Before the first access: so no memory is shared, and network file systems will do.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (whole,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if whole != "ok" or version not in (0, _VERSION):
            raise sqlite3.DatabaseError("damaged" if whole != "ok" else f"version {version}")
        with db:
            db.execute(_TABLE)
            db.execute(f"PRAGMA user_version = {_VERSION}")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _rows(db: sqlite3.Connection, variants: Collection[str]) -> list[Row]:
    marks = ", ".join("?" * len(variants))
    query = f"SELECT variant, request, answer FROM answers WHERE variant IN ({marks})"
    return list(db.execute(query, tuple(variants)))
