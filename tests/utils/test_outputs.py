"""What commands write over, and what they must not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trimix_lm_eval.utils import outputs
from trimix_lm_eval.utils.errors import TrimixError

PAGE = f"<html>{outputs.generator('trimix x')}"


@pytest.mark.parametrize(
    ("there", "command", "kept"),
    [
        (None, "", False),
        ("new", "", False),
        ("mine", "", True),
        ("mine", "trimix x", True),
        (PAGE, "trimix x", False),
        (PAGE, "trimix y", True),
        ("x" * 5000 + PAGE, "trimix x", True),
        ("", "trimix x", True),
    ],
)
def test_files_of_others_are_kept(tmp_path, there, command, kept):
    path = tmp_path / "f"
    if there is not None:
        path.write_text(there)
    if kept:
        with pytest.raises(TrimixError, match=r"f is there already, .*\n.*move it away"):
            outputs.keep_others({path: "new"}, command)
    else:
        outputs.keep_others({path: "new"}, command)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
def test_what_is_no_file_is_kept(tmp_path, make):
    make(tmp_path / "f")
    with pytest.raises(TrimixError, match="f (is there already|cannot be read)"):
        outputs.keep_others({tmp_path / "f": "new"}, "trimix x")


def test_outputs_that_are_inputs_are_refused(tmp_path):
    (tmp_path / "a").write_text("a")
    os.link(tmp_path / "a", tmp_path / "hard")
    (tmp_path / "soft").symlink_to("a")
    (tmp_path / "ahead").symlink_to("new")
    a, new = tmp_path / "a", tmp_path / "new"
    for place in (a, tmp_path / "hard", tmp_path / "soft", tmp_path / "no" / ".." / "a"):
        with pytest.raises(TrimixError, match="--output and --text are the same file"):
            outputs.keep_inputs([("--output", place)], [("--text", a)])
    for place in (new, tmp_path / "ahead"):
        with pytest.raises(TrimixError, match="--json and --output are the same file"):
            outputs.keep_inputs([("--output", new), ("--json", place)], [])
    null = Path(os.devnull)
    outputs.keep_inputs([("x", null), ("y", null), ("z", new)], [("w", a), ("v", null)])
    outputs.keep_inputs([("x", Path("a\0")), ("y", Path("y" * 300))], [("w", a)])
