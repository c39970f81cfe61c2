"""Progress off a terminal: whole lines, few of them, and times that can be believed."""

import io
import sys

import pytest
from tqdm import tqdm

from trimix_lm_eval.utils import progress
from trimix_lm_eval.utils.progress import ProgressLines, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds, which a test moves on by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def log(capsys, monkeypatch):
    """Gives what was written to stderr, which is no terminal."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    return lambda: capsys.readouterr().err


def run(clock, seconds, items, desc="step", **options):
    for _ in progress_bar(items, desc, **options):
        clock[0] += seconds


def test_a_short_step_is_one_line(clock, log):
    run(clock, 0.5, range(8))
    assert log() == "step: 8/8 [00:04<00:00,  2.00it/s]\n"


def test_a_long_step_tells_less_and_less_often_and_never_returns_the_carriage(clock, log):
    run(clock, 1, range(7200), unit="answer")
    printed = log()
    lines = printed.splitlines()
    assert "\r" not in printed
    assert lines[0] == "step: 30/7200 [00:30<1:59:30,  1.00answer/s]"
    done = [int(line.split()[1].split("/")[0]) for line in lines]
    assert done == [30, 90, 210, 450, 930, *range(1530, 7200, 600), 7200]


def test_the_remaining_time_is_that_of_the_mean_speed(clock, log):
    bar = progress_bar(None, "step", total=100, initial=40)
    clock[0] += 60
    bar.update(20)  # of the 60 that were left
    assert log() == "step: 60/100 [01:00<02:00,  3.00s/it]\n"


def test_a_step_that_fails_says_how_far_it_came(clock, log):
    with pytest.raises(KeyError), progress_bar(None, "step", total=9) as bar:
        bar.update(2)
        clock[0] += 4
        raise KeyError
    assert log() == "step: 2/9 [00:04<00:14,  2.00s/it]\n"


def test_without_a_total_and_with_values_beside_it(clock, log):
    with progress_bar(None, "reading", unit="B", unit_scale=True) as bar:
        bar.set_postfix(loss="0.5", refresh=False)
        bar.update(2500)
        clock[0] += 1
    assert log() == "reading: 2.50k [00:01, 2.50kB/s, loss=0.5]\n"


def test_the_last_line_is_not_said_twice(clock, log):
    bar = progress_bar(None, "step", total=4)
    clock[0] += 40
    bar.update(4)
    bar.close()
    bar.close()
    assert log().count("\n") == 1


def test_what_prints_nothing(clock, log, monkeypatch):
    run(clock, 1, [])
    run(clock, 1, range(3), off=True)
    run(clock, 0.1, range(3), delay=1)
    progress_bar(None, "all of it was there", total=3, initial=3).close()
    with monkeypatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")
        run(clock, 1, range(3))
        progress.say("a line")
    monkeypatch.setenv("RANK", "1")
    progress.say("a line")
    assert log() == ""


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    bar = progress_bar(range(3), "step")
    assert isinstance(bar, tqdm) and not isinstance(bar, ProgressLines)
    assert list(bar) == [0, 1, 2]
    progress.say("a line")
    assert "\rstep: 100%" in stream.getvalue() and "a line" not in stream.getvalue()
    stream.truncate(0)
    assert list(progress_bar(range(3), "step", off=True)) == [0, 1, 2]
    assert stream.getvalue() == ""
