"""A Python that starts at once: for tests of processes that need no fresh interpreter.

Importing torch, transformers and lm-eval takes four seconds of a processor. `fork_server` does it
once for each process of pytest; the programs in the folder that `folder` returns take their
command there and behave as if they ran it themselves: streams, folder, environment, exit code,
signals both ways. ``python`` stands for this interpreter, ``trimix`` and ``lm_eval`` for the
installed commands. What a *fresh* interpreter does is to be tested with `sys.executable`.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support import lm_eval_tasks

SERVER = Path(__file__).with_name("fork_server.py")

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys

name, *argv = os.path.basename(sys.argv[0]), *sys.argv[1:]
if name != "python":
    argv = [os.path.join({scripts!r}, name), *argv]
elif argv[0][0] == "-" and argv[0] not in ("-c", "-m", "-u"):
    os.execv({python!r}, [{python!r}, *argv])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    body = json.dumps(dict(argv=argv, cwd=os.getcwd(), env=dict(os.environ))).encode()
    socket.send_fds(server, [b"%16d" % len(body)], [0, 1, 2])
    server.sendall(body)
    with server.makefile("r") as answers:
        pid = int(answers.readline())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, frame: os.kill(pid, number))
        status = int(answers.readline())
code = os.waitstatus_to_exitcode(status)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def environment(**more: str) -> dict[str, str]:
    """For a process of its own: offline, one thread, alone in the world."""
    drop = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {key: value for key, value in os.environ.items() if key not in drop}
    fixed = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return {**kept, **fixed, **more}


@functools.cache
def folder(preloaded: str = "everything") -> Path:
    """A folder with the programs ``python``, ``trimix`` and ``lm_eval``.

    Args:
        preloaded: "everything", or "libraries" where the environment says where the Hub is or
            its cache: huggingface_hub and what is built on it read that while they are imported.
    """
    place = Path(tempfile.mkdtemp(prefix="trimix-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    address, log = place / "socket", place / "log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, str(SERVER), str(address), preloaded, str(lm_eval_tasks.kept or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stream,
            env=environment(),
        )
    atexit.register(server.wait, 20)
    atexit.register(server.stdin.close)
    programs = place / "bin"
    programs.mkdir()
    scripts = str(Path(sys.executable).parent)
    text = CLIENT.format(python=sys.executable, scripts=scripts, address=str(address))
    for name in ("python", "trimix", "lm_eval"):
        (programs / name).write_text(text, encoding="utf-8")
        (programs / name).chmod(0o755)
    while not address.exists():
        assert server.poll() is None, log.read_text()
        time.sleep(0.05)
    return programs


def python(preloaded: str = "everything") -> str:
    """The program ``python`` of `folder`."""
    return str(folder(preloaded) / "python")
