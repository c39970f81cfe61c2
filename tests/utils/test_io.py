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


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("", {}),
        ("a: 1\nb: 1e-5", {"a": 1, "b": "1e-5"}),
        ("ratio: 4:1\npoints: [1:0, 0.1:0.9]", {"ratio": "4:1", "points": ["1:0", "0.1:0.9"]}),
        ("filter: !function utils.f", {"filter": "utils.f"}),
        ("x: &x {a: 1}\ny: {<<: *x, a: 2}", {"x": {"a": 1}, "y": {"a": 2}}),
        ("1: a\n'1': b", {1: "a", "1": "b"}),
    ],
)
def test_yaml_is_read_as_it_is_written(tmp_path, text, content):
    (tmp_path / "a.yaml").write_text(text)
    assert io.read_yaml(tmp_path / "a.yaml") == content


def test_yaml_that_is_none_is_one_message(tmp_path):
    wrong = {"[]": "no mapping", "- a": "no mapping", "a: [": "not YAML", "\xff": "not YAML"}
    for text, said in wrong.items():
        (tmp_path / "a.yaml").write_bytes(text.encode("latin-1"))
        with pytest.raises(TrimixError, match=f"a.yaml is {said}") as refused:
            io.read_yaml(tmp_path / "a.yaml")
        assert "<unicode string>" not in str(refused.value)
    (tmp_path / "a.yaml").write_text("a: 1\nb: [1, 2\nc: 3\n")
    with pytest.raises(TrimixError, match=r'in ".*a\.yaml", line 3, column'):
        io.read_yaml(tmp_path / "a.yaml")
    for text in ("a: 1\nb: 2\na: 3\n", "b: 1\nc: [{a: 1, a: 1}]\n", "<<: {a: 1}\na: 1\n'a': 2\n"):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(TrimixError, match=r"(?s)found the key 'a' twice.*a\.yaml\", line"):
            io.read_yaml(tmp_path / "a.yaml")
    with pytest.raises(TrimixError, match="No such file.*\n  -> look again"):
        io.read_yaml(tmp_path / "none.yaml", "look again")


def test_outputs_that_are_inputs_are_refused(tmp_path):
    (tmp_path / "a").write_text("a")
    os.link(tmp_path / "a", tmp_path / "hard")
    (tmp_path / "soft").symlink_to("a")
    (tmp_path / "ahead").symlink_to("new")
    a, new = tmp_path / "a", tmp_path / "new"
    for place in (a, tmp_path / "hard", tmp_path / "soft", tmp_path / "no" / ".." / "a"):
        with pytest.raises(TrimixError, match="--output and --text are the same file"):
            io.keep_inputs([("--output", place)], [("--text", a)])
    for place in (new, tmp_path / "ahead"):
        with pytest.raises(TrimixError, match="--json and --output are the same file"):
            io.keep_inputs([("--output", new), ("--json", place)], [])
    null = Path(os.devnull)
    io.keep_inputs([("x", null), ("y", null), ("z", new)], [("w", a), ("v", null)])
    io.keep_inputs([("x", Path("a\0")), ("y", Path("y" * 300))], [("w", a)])


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
