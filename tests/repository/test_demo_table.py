"""What one sees of a run: the table, and on the way to it one bar, or one line a step."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from tests.support.running import ROOT

#: Two of the five methods, so that each of these runs takes seconds.
TABLE = """
from examples import demo_table
demo_table.METHODS = {p: demo_table.METHODS[p] for p in ("small_base", "small_cpt")}
demo_table.main()
"""
SHOWN = [
    r" +bits/byte   choice acc       chrF\+\+",
    r"small_base alone( +\d\.\d{3}\*?){3}",
    r"small_cpt alone( +\d\.\d{3}\*?){3}",
    r"\* best of its column; bits/byte: lower is better",
    r"\(\d+ s\)",
]
#: All that `lm_eval` prints to a log: its own account of the run, with its own bars; a line a step
#: of ours; and what git says when lm-eval asks it for the commit of a folder without one.
LOG = r"""
\S+ WARNING  \[\S+\] --limit SHOULD ONLY BE USED FOR TESTING. .*
\S+ INFO     \[\S+\] .*
trimix: loading (large_ins|small_cpt|small_base)
trimix (loglikelihood|loglikelihood_rolling|generate_until): \d+/\d+ \[.*\]
 *\d+%\|.*
fatal: not a git repository .*
""".strip().splitlines()


@pytest.fixture
def away(tmp_path):
    """Keyword arguments of a process in a folder that is no git repository."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}
    return {"cwd": tmp_path, "env": {**env, "PYTHONPATH": str(ROOT)}}


def check(text: str, patterns: list[str]) -> None:
    lines = text.splitlines()
    assert len(lines) == len(patterns), text
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line.rstrip()), line


def test_in_a_log_the_demo_prints_a_line_a_method_and_the_table(away):
    command = [sys.executable, "-c", TABLE, "--limit", "1"]
    done = subprocess.run(command, capture_output=True, timeout=300, **away)
    assert b"\r" not in done.stdout + done.stderr
    check(done.stderr.decode(), [r"small_base alone: \d+ s", r"small_cpt alone: \d+ s"])
    check(done.stdout.decode(), SHOWN)


def test_on_a_terminal_the_demo_shows_one_bar_which_makes_room_for_the_table(away):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-c", TABLE, "--limit", "1"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, **away)
    os.close(theirs)
    drawn = b""
    try:
        while chunk := os.read(ours, 4096):
            drawn += chunk
    except OSError:  # what Linux says when nobody writes to a terminal any more
        pass
    os.close(ours)
    assert process.wait() == 0
    text = drawn.decode()
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


def test_a_run_of_lm_eval_says_nothing_that_is_of_no_use(away):
    command = [sys.executable, "-m", "lm_eval", "--model", "trimix", "--tasks", "trimix_demo"]
    command += ["--model_args", "pretrained=demo", "--limit", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **away)
    assert "trimix_demo_rolling" in done.stdout
    lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line]
    assert [line for line in lines if not any(re.fullmatch(known, line) for known in LOG)] == []
    assert sum("WARNING" in line for line in lines) == 1
    ours = [line.split(":")[0] for line in lines if line.startswith("trimix ")]
    kinds = ["loglikelihood_rolling", "loglikelihood", "generate_until"]
    assert ours == [f"trimix {kind}" for kind in kinds]
