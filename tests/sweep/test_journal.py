"""Whatever happens to a journal's files, it gives back what was written or nothing."""

from __future__ import annotations

import logging
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.sweep.answers import Answer
from trimix_lm_eval.sweep.journal import Journal
from trimix_lm_eval.utils import errors
from trimix_lm_eval.utils.distributed import DistributedEnv
from trimix_lm_eval.utils.errors import TrimixError

VARIANTS = [letter * 16 for letter in "abc"]


def answer(i: int) -> str:
    """Now a score, now a text."""
    choice = Choice(Weights(0.1 * (i % 9), 0.5), 2.5 + i / 7, 40 + i, (2.5, i / 3.0))
    if i % 3:
        return Answer((-i / 3.0, i % 2 == 0), choice).encoded()
    return Answer("a text \u0f0b " * (i % 50), None, "eos").encoded()


WRITTEN = {
    (variant, i.to_bytes(16, "big")): answer(i + 100 * n)
    for n, variant in enumerate(VARIANTS)
    for i in range(60)
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A journal as a process leaves it that ends, and as one that is killed: with its log."""
    ended, killed = (tmp_path_factory.mktemp("journals") / name for name in ("ended", "killed"))
    journal = Journal(ended, DistributedEnv(), VARIANTS)
    for (variant, request), text in WRITTEN.items():
        journal.add([(variant, request, text)])
    shutil.copytree(ended, killed)
    journal.close()
    assert (killed / "rank0.sqlite-wal").stat().st_size > 100_000
    return ended, killed


@pytest.fixture
def told(caplog):
    """What is said of journals, since the last time."""
    caplog.set_level(logging.WARNING, "trimix_lm_eval")

    def since():
        errors._warned.clear()
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    since()
    return since


def contents(folder: Path) -> dict[tuple[str, bytes], str]:
    """What a journal holds, and that it takes what it lacks."""
    journal = Journal(folder, DistributedEnv(), VARIANTS)
    found = {(v, request): text for v in VARIANTS for request, text in journal.answers(v).items()}
    assert all(journal.requests(v) == {r for w, r in found if w == v} for v in VARIANTS)
    for at in [at for at in WRITTEN if at not in found]:
        journal.add([(*at, WRITTEN[at])])
    assert {(v, r): text for v in VARIANTS for r, text in journal.answers(v).items()} == WRITTEN
    journal.close()
    return found


BYTES = {
    "a bit": lambda data, draw: _put(data, draw, bytes([1 << draw.randrange(8)])),
    "some bytes": lambda data, draw: _put(data, draw, draw.randbytes(64)),
    "the head": lambda data, draw: _put(data, draw, draw.randbytes(1), 100),
    "a block": lambda data, draw: _put(data, draw, bytes(512)),
    "the end": lambda data, draw: data[: draw.randrange(len(data))],
    "a page": lambda data, draw: _put(data, draw, data[4096:8192], len(data) // 4096, 4096),
}


def _put(data: bytes, draw: random.Random, new: bytes, places: int = 0, step: int = 1) -> bytes:
    at = draw.randrange(places or len(data)) * step
    return data[:at] + new + data[at + len(new) :]


@pytest.mark.parametrize("how", BYTES)
def test_damaged_bytes_change_no_answer(folders, tmp_path, told, how):
    """No error, no other answer, one message at most; and afterwards it is in order."""
    draw = random.Random(how)
    for which, folder in enumerate(folders):
        copied = tmp_path / str(which)
        shutil.copytree(folder, copied)
        file = draw.choice(sorted(copied.iterdir()))
        file.write_bytes(BYTES[how](file.read_bytes(), draw))
        assert contents(copied).items() <= WRITTEN.items()
        assert len(told()) <= 1
        assert contents(copied) == WRITTEN
        assert not told()


ONE = "variant = ? AND request = ?"
SQL = {
    "another answer": f"UPDATE answers SET answer = '[[-1.0, true], null]' WHERE {ONE}",
    "no JSON": f"UPDATE answers SET answer = '' WHERE {ONE}",
    "null": f"UPDATE answers SET answer = NULL WHERE {ONE}",
    "a number": f"UPDATE answers SET answer = 5, checksum = 5 WHERE {ONE}",
    "no UTF-8": f"UPDATE answers SET answer = CAST(x'ff' AS TEXT) WHERE {ONE}",
    "a row's request": f"UPDATE answers SET request = x'00' WHERE {ONE}",
    "a row's variant": f"UPDATE answers SET variant = 'other' WHERE {ONE}",
    "the answer of another": (
        "UPDATE answers SET (answer, checksum) = (SELECT answer, checksum FROM answers LIMIT 1) "
        f"WHERE {ONE}"
    ),
    "no checksum": f"UPDATE answers SET checksum = NULL WHERE {ONE}",
}


@pytest.mark.parametrize("how", SQL)
def test_a_row_that_is_not_as_written_is_not_answered(folders, tmp_path, told, how):
    copied = tmp_path / "copied"
    shutil.copytree(folders[0], copied)
    at = list(WRITTEN)[77]
    with sqlite3.connect(copied / "rank0.sqlite") as db:
        assert db.execute(SQL[how], at).rowcount == 1
    db.close()
    assert contents(copied) == {key: text for key, text in WRITTEN.items() if key != at}
    (message,) = told()
    assert "(1 answer not as written): 179 of its answers can be read" in message


@pytest.mark.parametrize(
    ("sql", "kept"),
    [
        ("DROP TABLE answers", 0),
        ("ALTER TABLE answers RENAME TO other", 0),
        ("PRAGMA user_version = 99", len(WRITTEN)),
        ("CREATE TRIGGER t AFTER INSERT ON answers BEGIN DELETE FROM answers; END", len(WRITTEN)),
    ],
)
def test_a_journal_of_another_layout(folders, tmp_path, sql, kept):
    copied = tmp_path / "copied"
    shutil.copytree(folders[0], copied)
    with sqlite3.connect(copied / "rank0.sqlite") as db:
        db.execute(sql)
    db.close()
    assert len(contents(copied)) == kept


def test_damage_of_another_process_s_journal_is_not_taken_over(folders, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(folders[0], copied)
    file = (copied / "rank0.sqlite").rename(copied / "rank3.sqlite")
    with sqlite3.connect(file) as db:
        db.execute("UPDATE answers SET answer = '[0.0, null]' WHERE variant = ?", VARIANTS[:1])
    db.close()
    assert contents(copied) == {key: x for key, x in WRITTEN.items() if key[0] != VARIANTS[0]}


def test_damage_while_it_is_in_use(folders, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(folders[0], copied)
    journal = Journal(copied, DistributedEnv(), VARIANTS)
    with journal._db as db:
        db.execute("UPDATE answers SET answer = '[0.0, null]' WHERE variant = ?", VARIANTS[:1])
    with pytest.raises(TrimixError, match="(?s)60 answers not as written.*same command again"):
        journal.answers(VARIANTS[0])
    journal.close()


@pytest.mark.parametrize("what", ["a folder", "a folder that is full"])
def test_what_cannot_be_a_journal(tmp_path, what):
    file = tmp_path / "j" / "rank0.sqlite"
    file.mkdir(parents=True)
    if what != "a folder":
        (file / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(TrimixError, match="cannot be opened"):
        Journal(tmp_path / "j", DistributedEnv(), [])
