"""What a later run reads back, damaged: it gives what was written, nothing, or the file's name."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.loading.test_hostile_arguments import READABLE
from tests.support.fuzzing import Damage, budget, damaged_bytes, mutated, no_hang, values
from tests.support.results_files import trimix_config
from tests.sweep.test_journal import VARIANTS, WRITTEN
from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.harness.response_cache import CachedAnswer, ResponseCache
from trimix_lm_eval.harness.weights_log import WeightsLog
from trimix_lm_eval.sweep import files
from trimix_lm_eval.sweep.journal import Journal
from trimix_lm_eval.training.cpt import seals
from trimix_lm_eval.utils import io
from trimix_lm_eval.utils.distributed import DistributedEnv
from trimix_lm_eval.utils.errors import TrimixError

#: A value that a row of a database may hold.
cells = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.binary(max_size=40)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
)


def damage_row(file: Path, table: str, data: st.DataObject) -> None:
    """Change a cell of a table, or delete or copy a row."""
    # What the table itself refuses to hold is no damage.
    with suppress(sqlite3.IntegrityError), closing(sqlite3.connect(file)) as db, db:
        db.execute("PRAGMA synchronous = OFF")
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        keys = db.execute(f"SELECT {columns[0]}, {columns[1]} FROM {table}").fetchall()
        key = data.draw(st.sampled_from(keys))
        column = data.draw(st.sampled_from(columns))
        where = f"WHERE {columns[0]} = ? AND {columns[1]} = ?"
        if data.draw(st.booleans()):
            db.execute(
                f"UPDATE OR REPLACE {table} SET {column} = ? {where}", (data.draw(cells), *key)
            )
        elif data.draw(st.booleans()):
            db.execute(f"DELETE FROM {table} {where}", key)
        else:
            other = data.draw(st.sampled_from(keys))
            new = f"(SELECT {column} FROM {table} {where})"
            db.execute(f"UPDATE OR REPLACE {table} SET {column} = {new} {where}", (*other, *key))


# ---------------------------------------------------------------- the sweep's journal


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    """The folder of a journal as a process leaves it."""
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(folder / "kept", DistributedEnv(), VARIANTS)
    journal._write((*at, answer) for at, answer in WRITTEN.items())
    journal.close()
    return folder


@budget(20)
@given(damage=damaged_bytes(), data=st.data())
def test_journals(journal, damage: Damage, data):
    shutil.rmtree(journal / "tried", ignore_errors=True)
    shutil.copytree(journal / "kept", journal / "tried")
    file = journal / "tried" / "rank0.sqlite"
    if data.draw(st.booleans()):
        file.write_bytes(damage(file.read_bytes()))
    else:
        damage_row(file, "answers", data)
    with no_hang():
        opened = Journal(journal / "tried", DistributedEnv(), VARIANTS)
        found = {(v, r): text for v in VARIANTS for r, text in opened.answers(v).items()}
        opened.close()
    assert found.items() <= WRITTEN.items()


# ---------------------------------------------------------------- the response cache

DESCRIPTION = {
    key: trimix_config("ppl")[key] for key in ("sources", "policy", "plausibility", "seed")
}
ANSWERS = {
    f"key{i}": CachedAnswer((-i / 3, True) if i % 2 else f"text {i}", Weights(0.1 * i, 1.0), "stop")
    for i in range(20)
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with closing(sqlite3.connect(folder / "kept.db")) as db:
        db.execute('CREATE TABLE "unnamed" (key TEXT PRIMARY KEY, value BLOB)')
    made = ResponseCache(str(folder / "kept.db"), "unnamed")
    made.claim(DESCRIPTION)
    for key, answer in ANSWERS.items():
        made.keep(key, answer)
    made._db.close()
    return folder


@budget(30)
@given(damage=damaged_bytes(), data=st.data())
def test_response_caches(cache, damage: Damage, data):
    file = Path(shutil.copy(cache / "kept.db", cache / "tried.db"))
    for part in cache.glob("tried.db-*"):
        part.unlink()
    if data.draw(st.booleans()):
        file.write_bytes(damage(file.read_bytes()))
    else:
        damage_row(file, "trimix", data)
    try:
        with no_hang():
            opened = ResponseCache(str(file), "unnamed")
            try:
                opened.claim(DESCRIPTION)
                found = {key: opened.answer(key) for key in ANSWERS}
            finally:
                opened._db.close()
    except TrimixError as error:
        assert str(file) in str(error) and len(str(error)) < READABLE
    else:
        assert all(answer in (None, ANSWERS[key]) for key, answer in found.items())


# ---------------------------------------------------------------- records, seals, finished variants


@budget(100)
@given(content=st.dictionaries(st.text(max_size=5), values, max_size=4), damage=damaged_bytes())
def test_records(tmp_path_factory, content: dict[str, Any], damage: Damage):
    file = tmp_path_factory.getbasetemp() / "record.json"
    content.pop(seals._KEY, None)
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return  # no record of ours has such a text
    seals.write_record(file, content)
    sound = json.dumps(seals.read_record(file))
    assert sound == json.dumps(content)
    file.write_bytes(damage(file.read_bytes()))
    with no_hang():
        assert json.dumps(seals.read_record(file)) in ("null", sound)


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    """The folder of a finished variant, and what its numbers depend on."""
    folder = tmp_path_factory.mktemp("variant") / "kept"
    identity = {"policy": {"name": "ppl"}, "tasks": {"a": {"documents": 3}}, "list": [1, 2.5, None]}
    for name, text in (
        ("m/results_1.json", '{"results": {}}'),
        ("m/samples_a_1.jsonl", '{"a": 1}\n'),
    ):
        io.write(folder / name, text)
    digests = {
        name: files._digest(folder / name) for name in ("m/results_1.json", "m/samples_a_1.jsonl")
    }
    io.write_json(folder / files._FINGERPRINT, {**identity, files._FILES: digests})
    assert files.finished(folder, identity, folder.parent)
    return folder, identity


@budget(80)
@given(damage=damaged_bytes(), data=st.data())
def test_finished_variants(variant, damage: Damage, data):
    kept, identity = variant
    folder = kept.with_name("tried")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder)
    name = data.draw(
        st.sampled_from([files._FINGERPRINT, "m/results_1.json", "m/samples_a_1.jsonl"])
    )
    before = (folder / name).read_bytes()
    if name == files._FINGERPRINT and data.draw(st.booleans()):
        (folder / name).write_text(json.dumps(data.draw(mutated(json.loads(before)))))
    else:
        (folder / name).write_bytes(damage(before))
    try:
        with no_hang():
            assert files.finished(folder, identity, folder.parent)
            assert files.results_of(folder) == folder / "m/results_1.json"
    except TrimixError as error:
        assert str(folder) in str(error) and len(str(error)) < READABLE
    else:
        assert name == files._FINGERPRINT or (folder / name).read_bytes() == before


@pytest.mark.parametrize(
    "name", ["/dev/zero", "pipe", "a\0b", "../other", "x" * 300, "loop", "m", "/etc/hostname", ""]
)
def test_a_finished_variant_reads_no_file_but_its_own(variant, tmp_path, name):
    """A fingerprint is foreign data: it may name a device, which has no end."""
    kept, identity = variant
    folder = Path(shutil.copytree(kept, tmp_path / "tried"))
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (tmp_path / "other").write_text("other", encoding="utf-8")
    noted = json.loads((folder / files._FINGERPRINT).read_text(encoding="utf-8"))
    noted[files._FILES][name] = "0"
    io.write_json(folder / files._FINGERPRINT, noted)
    with no_hang(), pytest.raises(TrimixError, match="(is gone|cannot be read)") as refused:
        files.finished(folder, identity, folder.parent)
    assert str(folder) in str(refused.value) and len(str(refused.value)) < READABLE


# ---------------------------------------------------------------- the weights log


@budget(60)
@given(damage=damaged_bytes())
def test_weights_logs(tmp_path_factory, damage: Damage):
    """What is appended can be read, whatever was there, which stays."""
    file = tmp_path_factory.getbasetemp() / "weights.jsonl"
    before = damage(b'{"task": "t", "doc_id": 0, "alpha": 0.5}\n' * 3)
    file.write_bytes(before)
    log = WeightsLog(str(file), 0, 1)
    for doc in range(2):
        log.write(("t", doc, 0, 0), "loglikelihood", Choice(Weights(0.5, 1.0), 2.5, 7, None), "eos")
    assert log.stream
    log.stream.close()
    after = file.read_bytes()
    assert after.startswith(before)
    *_, first, second = after.splitlines()
    assert [json.loads(line)["doc_id"] for line in (first, second)] == [0, 1]
