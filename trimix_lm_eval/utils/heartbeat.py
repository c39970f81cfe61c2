"""Signs of life between processes: none waits for ever for one that is stopped or gone.

A collective operation may rightly wait for hours, while another process still evaluates its share:
a timeout of its own is no help. So each process has a thread that writes a count into the
launcher's store four times a second, whatever the process computes. One that is stopped (SIGSTOP, a
frozen container) writes none, nor does a node that is lost without a word. Who waits for the others
reads their counts, and ends when one of them has not changed for `limit` seconds.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

from trimix_lm_eval.utils import validation
from trimix_lm_eval.utils.errors import TrimixError, first_line

#: Seconds from one sign of life to the next.
_PERIOD = 0.25
#: How long a process may be silent, in seconds, unless the environment says otherwise.
_LIMIT, _VARIABLE = 60.0, "TRIMIX_PROCESS_TIMEOUT"
_WEEK = 7 * 24 * 3600
#: How long processes may take to start, one after the other, in seconds.
_START = 600
_HINT = (
    "run the same command again: lm_eval goes on from its --use_cache (without one it begins "
    "anew), a sweep from its journal, cpt from its last checkpoint"
)


def limit() -> float:
    """How many seconds a process may be silent before those that wait for it end.

    Raises:
        TrimixError: ``TRIMIX_PROCESS_TIMEOUT`` is no number of seconds.
    """
    given = os.environ.get(_VARIABLE) or _LIMIT
    hint = ": how many seconds a process may be silent"
    return validation.number(_VARIABLE, given, most=_WEEK, above=0, hint=hint)


@contextmanager
def patience() -> Iterator[None]:
    """End this process if what is done inside, which waits for all others to start, takes long."""

    def give_up() -> None:
        world, host = os.environ.get("WORLD_SIZE"), os.environ.get("MASTER_ADDR")
        what = f"Not all of {world} processes have come to {host} within {_START} seconds."
        _end(TrimixError(what, "start the same command on every node, as WORLD_SIZE says"))

    timer = threading.Timer(_START, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Heartbeat:
    """The signs of life of one process, and those that it has from the others.

    Args:
        rank: Of this process.
        world: Number of processes. All of them make one, as soon as they have joined.
        limit: How many seconds a process may be silent.

    Raises:
        TrimixError: Another process has been silent from the start.
    """

    def __init__(self, rank: int, world: int, limit: float) -> None:
        self._rank, self._limit, self._count = rank, limit, itertools.count()
        self._name = f"{socket.gethostname()}, process id {os.getpid()}"
        self._keys = [str(other) for other in range(world)]
        self._waiting, self._ended = False, threading.Event()
        try:
            self._store = _connected(limit)
            self._beat()
            self._store.wait(self._keys, timedelta(seconds=limit))
            #: Of each process: a count and its name, as last read.
            self._heard = self._read()
        except RuntimeError as error:
            what = f"One of {world} processes ended while they met: {first_line(error)}."
            raise TrimixError(
                what, "see what it says itself; then run the same command again"
            ) from error
        self._threads = [
            threading.Thread(target=target, daemon=True, name=f"heartbeat-{target.__name__}")
            for target in (self._tell, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the others while this process waits for them; ends it if one stays silent."""
        outermost, self._waiting = not self._waiting, True
        try:
            yield
        finally:
            self._waiting = not outermost

    def lost(self, error: Exception) -> TrimixError:
        """What to say of an error of torch's: which process cannot be reached.

        Takes some signs of life's time, in which those who give none are found out.
        """
        with self.watching():
            self._ended.wait(2 * _PERIOD)
            before = list(self._heard)
            self._ended.wait(3 * _PERIOD)
        silent = [r for r, (a, b) in enumerate(zip(before, self._heard, strict=True)) if a == b]
        who = self._named(silent) if silent else "The connection of some processes is broken, which"
        # Without where in torch's source that is, and what it supposes.
        why = re.sub(r"^\[\S+\] ", "", first_line(error)).partition(". ")[0]
        return TrimixError(f"{who} ended or cannot be reached: {why}.", _HINT)

    def end(self) -> None:
        """Give no more signs of life, before this process ends."""
        self._ended.set()
        for thread in self._threads:
            thread.join(2 * _PERIOD)

    def _tell(self) -> None:
        """Give signs of life; read those of others where somebody wants to know."""
        while not self._ended.wait(_PERIOD):
            try:
                self._beat()
                if self._waiting:
                    self._heard = self._read()
            except RuntimeError:  # the store is gone, and all are silent from now on
                return

    def _watch(self) -> None:
        """Count how long the others are silent: in turns of this thread, which may be stopped, too.

        A thread of its own, since `_tell` is blocked where the store's host is stopped.
        """
        before, turns = list(self._heard), [0] * len(self._heard)
        while not self._ended.wait(_PERIOD):
            now, waiting = list(self._heard), self._waiting
            turns = [
                turn + 1 if waiting and new == old else 0
                for turn, new, old in zip(turns, now, before, strict=True)
            ]
            before = now
            silent = [r for r, turn in enumerate(turns) if turn * _PERIOD >= self._limit]
            if silent:
                self._give_up(silent)

    def _give_up(self, silent: Sequence[int]) -> NoReturn:
        """End this process, whose main thread cannot be called back from where it waits."""
        what = (
            f"{self._named(silent)} given no sign of life for {self._limit:g} seconds "
            f"({_VARIABLE}): stopped, or on a node that is lost."
        )
        _end(TrimixError(what, _HINT))

    def _beat(self) -> None:
        self._store.set(self._keys[self._rank], f"{next(self._count)} {self._name}")

    def _read(self) -> list[str]:
        return [found.decode() for found in self._store.multi_get(self._keys)]

    def _named(self, silent: Sequence[int]) -> str:
        """The processes that are silent; where this one cannot hear itself, it is the store."""
        world = len(self._keys)
        if self._rank in silent:
            host = os.environ["MASTER_ADDR"]
            return f"The node of process 0 of {world} ({host}), or its launcher, has"
        names = [f"process {r} ({self._heard[r].partition(' ')[2]})" for r in silent]
        have = "has" if len(names) == 1 else "have"
        return f"Of {world} processes, {' and '.join(names)} {have}"


def _end(error: TrimixError) -> NoReturn:
    """End this process from a thread, with an error."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def _connected(limit: float) -> Any:
    """The store by which the processes have found each other, over a connection of its own."""
    from torch.distributed import PrefixStore, TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, timeout=timedelta(seconds=limit), wait_for_workers=False)
    # A launcher's store outlives the processes that it starts again.
    return PrefixStore(f"trimix/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
