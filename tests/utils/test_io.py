"""Files that are there as a whole or not at all."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from trimix_lm_eval.utils import io
from trimix_lm_eval.utils.errors import TrimixError


def test_texts_bytes_and_json_are_written_as_they_are(tmp_path):
    io.write(tmp_path / "new" / "folder" / "a.txt", "ö\r\nb\n")
    io.write(tmp_path / "b", b"\0\xff")
    io.write_json(tmp_path / "c.json", {"ö": [1, None]})
    assert (tmp_path / "new" / "folder" / "a.txt").read_bytes() == b"\xc3\xb6\r\nb\n"
    assert (tmp_path / "b").read_bytes() == b"\0\xff"
    text = (tmp_path / "c.json").read_text(encoding="utf-8")
    assert "ö" in text and json.loads(text) == {"ö": [1, None]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c.json", "new"]


def test_a_new_file_has_the_rights_that_other_files_get(tmp_path):
    (tmp_path / "plain").write_text("")
    io.write(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("fails", ["write_bytes", "replace"])
def test_a_full_disk_is_named_and_costs_nothing_that_was_there(tmp_path, monkeypatch, fails):
    (tmp_path / "a").write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = type(tmp_path) if fails == "write_bytes" else os
    monkeypatch.setattr(target, fails, full)
    with pytest.raises(TrimixError, match="a cannot be written: No space left.*\n.*make room"):
        io.write(tmp_path / "a", "new")
    monkeypatch.undo()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_other_reasons_come_with_the_callers_hint(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(TrimixError, match="Not a directory.*\n  -> give another --output"):
        io.write(tmp_path / "file" / "below" / "x", "", "give another --output")
    with pytest.raises(TrimixError, match="Is a directory"):
        io.write(tmp_path / "folder", "")


def test_links_and_pipes_stay_what_they_are(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    io.write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"

    os.mkfifo(tmp_path / "pipe")
    found = []
    pipe = tmp_path / "pipe"
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()), daemon=True)
    reader.start()
    io.write(tmp_path / "pipe", "said")
    reader.join(timeout=30)
    assert found == ["said"] and (tmp_path / "pipe").is_fifo()


def test_a_place_is_tried_before_the_work(tmp_path):
    io.check_place(tmp_path / "new" / "a")
    io.check_place(Path(os.devnull))
    assert [path.name for path in tmp_path.rglob("*")] == ["new"], "and nothing is left there"
    (tmp_path / "file").write_text("kept")
    io.check_place(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    (tmp_path / "loop").symlink_to("loop")
    for name in ("", "x" * 300, "x" * 252, "a\0", "\ud800", "file/a", "loop/a"):
        with pytest.raises(TrimixError):
            io.check_place(tmp_path / name)
