"""Processes that are forked for tests behave as those that a user starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lm_eval import tasks
from lm_eval.tasks import _index
from lm_eval.tasks._yaml_loader import load_yaml

from tests.support.quick_python import environment, folder, python

BOTH = pytest.mark.parametrize("fresh", [False, True], ids=["forked", "fresh"])


def run(fresh: bool, *command: str, said: str = "", **more) -> subprocess.CompletedProcess:
    started = [sys.executable if fresh else python(), *command]
    env = environment(GIVEN="x")
    return subprocess.run(started, capture_output=True, text=True, input=said, env=env, **more)


@BOTH
def test_streams_folder_environment_and_arguments(fresh, tmp_path):
    code = "import os, sys; print(os.getcwd(), os.environ['GIVEN'], sys.argv, input())"
    told = run(fresh, "-c", code, "--an", "argument", said="typed", cwd=tmp_path)
    assert told.stdout == f"{tmp_path} x ['-c', '--an', 'argument'] typed\n"
    assert (told.returncode, told.stderr) == (0, "")


@BOTH
@pytest.mark.parametrize(
    ("code", "status", "says"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('no such thing')", 1, "no such thing\n"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import atexit, sys; atexit.register(sys.stderr.write, 'bye')", 0, "bye"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("import os; os.kill(os.getpid(), 2)", -signal.SIGINT, "KeyboardInterrupt"),
    ],
)
def test_every_end_is_told(fresh, code, status, says):
    # Under nohup SIGINT is ignored, also by the children: by a fresh interpreter, too.
    answer = signal.SIG_DFL if fresh else signal.SIG_IGN
    ended = run(fresh, "-c", code, preexec_fn=lambda: signal.signal(signal.SIGINT, answer))
    assert ended.returncode == status and says in ended.stderr


def test_a_module_a_script_and_a_command(tmp_path):
    (tmp_path / "script.py").write_text("import sys; print(__name__, sys.argv, sys.path[0])")
    told = run(False, str(tmp_path / "script.py"), "x").stdout
    assert told == f"__main__ ['{tmp_path / 'script.py'}', 'x'] {tmp_path}\n"
    version = run(False, "-m", "trimix_lm_eval", "--version").stdout
    assert (
        version
        and version
        == subprocess.run(
            [folder() / "trimix", "--version"], capture_output=True, text=True, env=environment()
        ).stdout
    )


def test_a_process_that_takes_too_long_is_ended(tmp_path):
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))"
    with pytest.raises(subprocess.TimeoutExpired):
        run(False, "-c", f"{code}; time.sleep(60)", timeout=2)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("still there")


def test_another_place_of_the_hub_is_refused_where_it_would_be_ignored():
    env = environment(HF_HOME="/elsewhere")
    done = subprocess.run([python(), "-c", ""], capture_output=True, text=True, env=env)
    assert done.returncode == 1 and "in another environment" in done.stderr


def test_tasks_of_lm_eval_that_were_kept_are_those_in_its_files():
    files = sorted(Path(tasks.__file__).parent.rglob("*.yaml"))[::400]
    for file in files:
        try:
            read = load_yaml(file, resolve_func=False)
        except Exception:  # as lm-eval, which passes over some
            continue
        kept = _index.load_yaml(file, resolve_func=False)
        assert kept == read
        assert kept is not _index.load_yaml(file, resolve_func=False)
