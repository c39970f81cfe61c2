"""Answers of a run, kept in the file that lm-eval opens for ``--use_cache``.

lm-eval keys an answer on the arguments of its request alone. Here an answer depends on more: on
what its weights were chosen from (the other options of its question, or the point of its task), and
a text that is drawn on which request and which repeat it answers. So `ResponseCache` keeps answers
itself, in a table of its own, by keys that hold all of it. lm-eval's own table stays empty: it
finds nothing there and hands on every request.

A fingerprint in the file stands for models and settings; a file of others is refused.
"""

from __future__ import annotations

import functools
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from trimix_lm_eval import __version__
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.loading.provenance import compared, text_digest
from trimix_lm_eval.utils.errors import TrimixError, first_line, warn_once

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

_FINGERPRINT = "fingerprint"
#: Another version of these, or of this package, may answer otherwise.
_MADE_BY = ("transformers", "torch")
_HINT = "give this run a --use_cache path of its own, or delete that file"


def install() -> None:
    """From now on, see that a file can be a cache before lm-eval opens it for one of our models."""
    from lm_eval.api.model import CachingLM

    make = CachingLM.__init__
    if hasattr(make, "__trimix_checks__"):
        return

    @functools.wraps(make)
    def __init__(self: CachingLM, lm: Any, cache_db: str) -> None:
        if hasattr(lm, "response_cache"):
            check_place(cache_db)
        make(self, lm, cache_db)

    __init__.__trimix_checks__ = True  # type: ignore[attr-defined]
    CachingLM.__init__ = __init__


def check_place(path: str) -> None:
    """See that a file is a database, or can become one; the folders that it needs are made.

    Raises:
        TrimixError: It is something else, or not for us to write.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("it is no file but a folder, a pipe or a device")
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
    except (OSError, ValueError, sqlite3.Error) as error:
        raise TrimixError(
            f"{path!r:.300} cannot be used for --use_cache: {first_line(error)}.",
            "give another path, behind which lm-eval puts _rank0.db; if another run uses the file, "
            "wait for it",
        ) from error


class TaskPoint(NamedTuple):
    """The point of a task; of each prompt that was read, its place in the draw and a digest."""

    weights: Weights
    drawn: dict[int, str]

    def fits(self, place: int, text: str, most: int) -> bool:
        """Whether a prompt that arrives now is of the set that the point was chosen from.

        The prompts of the lowest ``most`` places in the draw were read.
        """
        if place in self.drawn:
            return self.drawn[place] == text_digest(text)
        return len(self.drawn) >= most and place > max(self.drawn)


class CachedAnswer(NamedTuple):
    """What is known of a finished request; weights are None where nothing was scored.

    The reason is why a generated text ended; None for other kinds of request.
    """

    result: Any
    weights: Weights | None
    finish_reason: str | None


class ResponseCache:
    """Our table in a file of lm-eval's response cache.

    Every row is written at once, so that a process that is killed loses nothing that it finished,
    and with a checksum, so that a damaged row counts as none.

    Args:
        path: The file.
        table: lm-eval's table in it.
    """

    def __init__(self, path: str, table: str) -> None:
        self.path, self._table = path, table
        self._rows: dict[str, Any] = {}
        with self._telling():
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.text_factory = lambda raw: raw.decode("utf-8", "replace")
            self._db.execute("PRAGMA synchronous = OFF")  # as lm-eval; a crash of Python is safe

    def claim(self, description: dict[str, Any]) -> None:
        """Make the file ours, or make sure that it was.

        Args:
            description: See `provenance.describe`; paths do not count, digests and commits do.

        Raises:
            TrimixError: It holds the answers of another model, or of this one weighted otherwise,
                or it is damaged.
        """
        made_by = {name: version(name).split("+")[0] for name in _MADE_BY}
        made_by["trimix-lm-eval"] = __version__  # an editable installation's may be an older one
        mine = json.loads(json.dumps({**description, "versions": made_by}))
        with self._telling():
            (sound,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if sound != "ok":
                raise sqlite3.DatabaseError(sound.splitlines()[-1])
            tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}
            if "trimix" in tables:
                self._rows = dict(self._db.execute("SELECT key, value FROM trimix"))
                self._compare(mine)
            else:
                self._refuse_others()
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS trimix (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
            )
            self._db.execute(f'DELETE FROM "{self._table}"')
            # lm-eval puts every answer there as well when a run ends.
            self._db.execute(
                f'CREATE TRIGGER IF NOT EXISTS trimix_keeps_answers AFTER INSERT ON "{self._table}"'
                f' BEGIN DELETE FROM "{self._table}" WHERE key = new.key; END'
            )
            self._write(_FINGERPRINT, mine)
            self._db.execute("COMMIT")

    def _compare(self, mine: dict[str, Any]) -> None:
        theirs = self._read(_FINGERPRINT)
        if not isinstance(theirs, dict):
            raise sqlite3.DatabaseError("it does not say whose answers it holds")
        differences = list(compared(theirs, mine))
        if differences:
            raise TrimixError(
                f"{self.path} holds the answers of another run: {_short(theirs)}. This run is "
                f"{_short(mine)}. They differ in {'; '.join(differences[:5])}.",
                _HINT,
            )

    def _refuse_others(self) -> None:
        rows = f'SELECT 1 FROM "{self._table}"'
        if self._db.execute(f"{rows} WHERE key = 'trimix:fingerprint'").fetchone():
            raise TrimixError(
                f"{self.path} holds the answers of an earlier version of trimix, kept without what "
                "they depend on.",
                _HINT,
            )
        if self._db.execute(rows).fetchone():
            raise TrimixError(f"{self.path} holds the answers of a model other than trimix.", _HINT)

    # ---------------------------------------------------------------- answers

    def answer(self, key: str) -> CachedAnswer | None:
        """The answer that is kept by a key of `answer_keys`; None if there is none."""
        kept = self._read(key)
        if kept is None:
            return None
        result, weights, finish_reason = kept
        return CachedAnswer(
            tuple(result) if isinstance(result, list) else result,
            None if weights is None else Weights(*weights),
            finish_reason,
        )

    def keep(self, key: str, answer: CachedAnswer) -> None:
        """Keep an answer, as soon as it is known."""
        self._write(key, answer)

    def point(self, task: str, drawn: dict[int, str]) -> Weights | None:
        """The point that was chosen for a task from these prompts (`TaskPoint`); None if none."""
        kept = self._read(_point_key(task, drawn))
        return None if kept is None else Weights(*kept)

    def keep_point(self, task: str, chosen: TaskPoint) -> None:
        """Keep a task's point, before any request is answered with it."""
        self._write(_point_key(task, chosen.drawn), chosen.weights)

    # ---------------------------------------------------------------- rows

    def _read(self, key: str) -> Any:
        row = self._rows.get(key)
        if row is None:
            return None
        checksum, _, text = str(row).partition(" ")
        if checksum != text_digest(key + text):
            warn_once(f"{self.path} is damaged: what cannot be read counts as not answered.")
            return None
        return json.loads(text)

    def _write(self, key: str, value: Any) -> None:
        text = json.dumps(value)
        row = self._rows[key] = f"{text_digest(key + text)} {text}"
        with self._telling():
            self._db.execute("REPLACE INTO trimix VALUES (?, ?)", (key, row))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Say which file it is that SQLite cannot read or write."""
        try:
            yield
        except sqlite3.Error as error:
            raise TrimixError(
                f"{self.path} cannot be used: {first_line(error)}.",
                "if another run uses it, or the disk is full, wait or make room and start again; "
                "if it is damaged, delete it",
            ) from error


def answer_keys(
    kind: str,
    requests: Sequence[Instance],
    names: Sequence[tuple[Any, ...]],
    points: Sequence[Any] | None,
) -> list[str]:
    """What each answer depends on, beside models and settings, as a key.

    Args:
        kind: Name of lm-eval's method.
        requests: All of a call: what one is an option of is among them.
        names: From `lm.identified`, which begin with what a request is an option of; the seed of a
            text that is drawn follows from it, and repeats are told apart.
        points: The point of each request's task, where the policy chooses by task.
    """
    arguments = [json.dumps(request.args) for request in requests]
    options: dict[tuple[Any, ...], dict[str, None]] = {}
    for name, text in zip(names, arguments, strict=True):
        options.setdefault(name[:2], {})[text] = None
    together = {question: _digest(*texts) for question, texts in options.items()}
    return [
        _digest(kind, name, text, together[name[:2]], points[i] if points else None)
        for i, (name, text) in enumerate(zip(names, arguments, strict=True))
    ]


def _point_key(task: str, drawn: dict[int, str]) -> str:
    return f"point:{_digest(task, sorted(drawn.items()))}"


def _digest(*parts: Any) -> str:
    return sha256(json.dumps(parts).encode()).hexdigest()


def _short(description: dict[str, Any]) -> str:
    """One line that tells a user which run this was."""
    policy = description["policy"]
    options = {k: v for k, v in policy.items() if k in ("alpha", "beta", "gamma", "refine")}
    sources = ", ".join(
        f"{role}={s['path']}@{s['commit'] or s['digest'] or s['revision']} ({s['dtype']})"
        for role, s in description["sources"].items()
    )
    extra = "".join(f", {k}={v}" for k, v in options.items() if v is not None)
    return f"policy={policy['name']}{extra} of {sources}"
