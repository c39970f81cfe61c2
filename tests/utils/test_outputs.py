"""What commands write over."""

from __future__ import annotations

import os

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
    with pytest.raises(TrimixError, match="f (is there already|cannot be looked at)"):
        outputs.keep_others({tmp_path / "f": "new"}, "trimix x")
