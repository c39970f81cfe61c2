"""The server behind `quick_python`: imports once, then forks a child for every command.

Run as a program. It listens on a Unix socket; each client sends one command (arguments, folder,
environment) with its standard streams, and gets the child's id and, later, how the child ended.
Modules are imported here and hardly anything is computed: a child would miss a thread.

A child ends as an interpreter does, but for taking its objects apart one by one: with pages shared
between processes, that takes a second.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

#: Read no environment variable that a test sets, so they serve a child with any.
LIBRARIES = ("torch", "numpy", "pandas", "pyarrow", "scipy.stats", "sklearn.metrics", "sympy")
#: Read where the Hub and its cache are while they are imported: for children of one environment.
EVERYTHING = (
    *LIBRARIES,
    "datasets",
    "transformers.models.auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "lm_eval._cli",
    "lm_eval._cli.run",
    "lm_eval.evaluator",
    "lm_eval.models",
    "lm_eval.tasks.manager",
    "trimix_lm_eval.harness.lm",
    "torch.distributed.launcher.api",
)


class Command(NamedTuple):
    """What a client asks for."""

    argv: list[str]
    cwd: str
    env: dict[str, str]


def serve(listener: socket.socket) -> Command:
    """Fork a child for every client, until standard input ends; returns in the children only."""
    clients: dict[int, socket.socket] = {}
    wake, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # Ctrl-C in the terminal is for pytest, which ends this process by closing its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with selectors.DefaultSelector() as selector:
        for thing in (0, wake, listener):
            selector.register(thing, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj == wake:
                    os.read(wake, 1024)
                    for connection in ended(clients):
                        selector.unregister(connection)
                        connection.close()
                elif key.fileobj == 0:
                    for pid in clients:
                        os.kill(pid, signal.SIGKILL)
                    sys.exit()
                elif key.fileobj == listener:
                    connection, _ = listener.accept()
                    command, streams = receive(connection)
                    pid = os.fork()
                    if not pid:
                        signal.set_wakeup_fd(-1)
                        for kept in (wake, wakes, *(c.detach() for c in clients.values())):
                            os.close(kept)
                        connection.close()
                        become(streams)
                        return command
                    for stream in streams:
                        os.close(stream)
                    clients[pid] = connection
                    selector.register(connection, selectors.EVENT_READ, pid)
                    with contextlib.suppress(OSError):
                        connection.sendall(f"{pid}\n".encode())
                elif key.data in clients:  # its client has ended, by a timeout for example
                    os.kill(key.data, signal.SIGKILL)


def ended(clients: dict[int, socket.socket]) -> list[socket.socket]:
    """Tell the clients of children that have ended; returns their connections."""
    told = []
    while clients:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            break
        with contextlib.suppress(OSError):
            clients[pid].sendall(f"{status}\n".encode())
        told.append(clients.pop(pid))
    return told


def receive(connection: socket.socket) -> tuple[Command, list[int]]:
    """One command and its three streams."""
    head, streams, _, _ = socket.recv_fds(connection, 16, 3)
    with connection.makefile("rb") as stream:
        return Command(**json.loads(stream.read(int(head)))), streams


def become(streams: list[int]) -> None:
    """Take the client's streams; signals and errors do what they do in a new process."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Also where the tests were started in the background, whose children ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.excepthook = sys.__excepthook__


def read_at_import(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that libraries read once, while they are imported."""
    prefixes = ("HF_", "HUGGING", "TRANSFORMERS_", "OMP_", "XDG_CACHE_HOME", "HOME")
    return {name: value for name, value in env.items() if name.startswith(prefixes)}


def run(command: Command, found: dict[str, bytes]) -> None:
    """Run a command line of the interpreter: ``-c code``, ``-m module`` or a script.

    ``-u`` before any of them flushes whole lines.
    """
    if sys.argv[2] == "everything" and read_at_import(command.env) != read_at_import(os.environ):
        sys.exit("this server has imported transformers in another environment")
    os.chdir(command.cwd)
    os.environ.clear()
    os.environ.update(command.env)
    first, *more = command.argv
    if first == "-u":
        sys.stdout.reconfigure(line_buffering=True)
        first, *more = more
    sys.path[:0] = [p for p in command.env.get("PYTHONPATH", "").split(os.pathsep) if p]
    importlib.invalidate_caches()
    if sys.argv[2] == "libraries":
        forget()
        remember(found)
    if first == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = more
        runpy.run_module(more[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *more[1:]]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(more[0], "<string>", "exec"), vars(main))
    else:
        sys.path.insert(0, os.path.dirname(os.path.realpath(first)))
        sys.argv = [first, *more]
        runpy.run_path(first, run_name="__main__")


def end(error: BaseException | None) -> NoReturn:
    """End this process as the interpreter does after its main module, which raised ``error``."""
    code: Any = 0
    if isinstance(error, SystemExit):
        code = error.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def kept_tasks(file: str) -> dict[str, bytes]:
    """What `lm_eval_tasks` keeps in a file, if there is one."""
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))
    from tests.support import lm_eval_tasks

    del sys.path[0]
    return lm_eval_tasks.load(Path(file)) if file else {}


def remember(found: dict[str, bytes]) -> None:
    """Let lm-eval's index take the tasks that were kept, now or once it is imported."""
    from tests.support import lm_eval_tasks
    from trimix_lm_eval import _autoload

    _autoload._AFTER_IMPORT["lm_eval.tasks._index"] = lambda module: lm_eval_tasks.use(found)
    _autoload.install()


def forget() -> None:
    """Forget this package, of which a command may have another checkout on its path."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "trimix_lm_eval"]:
        del sys.modules[name]


def know_what_is_installed() -> None:
    """Ask pip once for what lm-eval writes into every results file."""
    from torch.utils import collect_env

    found = collect_env.get_pretty_env_info()
    collect_env.get_pretty_env_info = lambda: found


def main() -> tuple[Command, dict[str, bytes]]:
    """Import what is asked for, then serve."""
    address, names, tasks = sys.argv[1:]
    del sys.path[0]  # this folder, which is no place to import from
    for name in {"libraries": LIBRARIES, "everything": EVERYTHING}[names]:
        importlib.import_module(name)
    found = kept_tasks(tasks)
    if names == "everything":
        know_what_is_installed()
        remember(found)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address + ".new")
        listener.listen()
        os.rename(address + ".new", address)
        gc.collect()
        gc.freeze()
        return serve(listener), found


if __name__ == "__main__":
    asked = main()
    try:
        run(*asked)
    except BaseException as error:
        end(error)
    end(None)
