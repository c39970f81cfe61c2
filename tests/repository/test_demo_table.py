"""What one sees of a run: the table, and on the way to it one bar, or one line a step."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from typing import NamedTuple

import pytest

from tests.support.running import ROOT

#: Two of the five methods, so that each run takes seconds: to where the output goes, and then to
#: the terminal that standard input is.
TABLE = """
import os
from examples import demo_table

demo_table.METHODS = {p: demo_table.METHODS[p] for p in ("small_base", "small_cpt")}
demo_table.main()
for stream in (1, 2):
    os.dup2(0, stream)
demo_table.main()
"""
SHOWN = [
    r" +bits/byte   choice acc       chrF\+\+",
    r"small_base alone( +\d\.\d{3}\*?){3}",
    r"small_cpt alone( +\d\.\d{3}\*?){3}",
    r"\* best of its column; bits/byte: lower is better",
    r"\(\d+ s\)",
]


class Shown(NamedTuple):
    """What two runs in one process show: standard output and error of a log, and a terminal."""

    output: bytes
    errors: bytes
    terminal: bytes


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The demo in an interpreter of its own, first into a log, then on a terminal."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    log = [tmp_path_factory.mktemp("log") / name for name in ("output", "errors")]
    with log[0].open("wb") as output, log[1].open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", TABLE, "--limit", "1"],
            stdin=theirs,
            stdout=output,
            stderr=errors,
            env={**env, "PYTHONPATH": str(ROOT)},
            cwd=log[0].parent,
        )
    os.close(theirs)
    drawn = b""
    try:
        while chunk := os.read(ours, 4096):
            drawn += chunk
    except OSError:  # what Linux says when nobody writes to a terminal any more
        pass
    os.close(ours)
    assert process.wait() == 0, log[1].read_text()
    return Shown(log[0].read_bytes(), log[1].read_bytes(), drawn)


def check(text: str, patterns: list[str]) -> None:
    lines = text.splitlines()
    assert len(lines) == len(patterns), text
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line.rstrip()), line


def test_in_a_log_the_demo_prints_a_line_a_method_and_the_table(shown):
    assert b"\r" not in shown.output + shown.errors
    check(shown.errors.decode(), [r"small_base alone: \d+ s", r"small_cpt alone: \d+ s"])
    check(shown.output.decode(), SHOWN)


def test_on_a_terminal_the_demo_shows_one_bar_which_makes_room_for_the_table(shown):
    text = shown.terminal.decode()
    bar = text[: text.index("bits/byte   choice acc")]
    assert "\n" not in bar and "\x1b" not in bar  # one line, drawn over and over
    for step in ("small_base alone, bits/byte:", "small_cpt alone, chrF++:"):
        assert step in bar
    check(screen(text), SHOWN)


def screen(drawn: str) -> str:
    """What a terminal shows in the end, if nothing but carriage returns moves its cursor."""
    rows = [""]
    for piece in re.findall(r"\r\n|\r|[^\r]+", drawn):
        if piece == "\r\n":
            rows.append("")
            column = 0
        elif piece == "\r":
            column = 0
        else:
            rows[-1] = rows[-1][:column] + piece + rows[-1][column + len(piece) :]
            column += len(piece)
    return "\n".join(row.rstrip() for row in rows).rstrip("\n")
