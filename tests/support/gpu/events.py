"""What the simulated GPU was asked for, by whom; asynchronous copies and their ends."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

#: Frames in files with this in their path are named in events.
PROJECT = "trimix_lm_eval" + os.sep
#: Frames that are no answer to who did it.
_NOISE = (os.sep + "torch" + os.sep, str(Path(__file__).parent), "<frozen", "contextlib.py")


class Event(NamedTuple):
    """One thing that the device was asked for.

    Attributes:
        kind: ``launch``, ``view``, ``alloc``, ``sync`` (the host waits), ``h2d`` (a copy from
            pageable memory that it does not wait for), ``pinned`` (a copy from or to pinned
            memory), ``p2p`` (from device to device), ``event`` (recorded), ``mismatch``.
        op: The operator.
        device: Where.
        site: The project's innermost line, ``file:line function``.
        by: The innermost line outside PyTorch, if that is not the project's.
        size: Bytes of a copy, or kernels of a graph.
        dtype: Of the first tensor of a launch.
    """

    kind: str
    op: str
    device: str
    site: str
    by: str
    size: int = 0
    dtype: str = ""


class Seen:
    """What happened while it was watched."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def of(self, *kinds: str) -> list[Event]:
        return [event for event in self.events if event.kind in kinds]

    @property
    def syncs(self) -> list[Event]:
        return self.of("sync")

    def by_site(self, *kinds: str) -> Counter[tuple[str, str, str]]:
        """How often, by kind, operator and line of the project."""
        return Counter((event.kind, event.op, event.site) for event in self.of(*kinds))


class State:
    """Of the one simulated backend that a process can have."""

    devices = 2
    index = 0
    watchers: list[Seen] = []
    #: How deep this thread is in `no_sync`.
    forbidden = threading.local()
    #: Of `torch.cuda.set_sync_debug_mode`; 2 makes every wait an error.
    sync_mode = 0
    #: What is being captured, a `graphs.Tape`.
    tape: Any = None
    #: By device, the stream that is current, where it is not the default one.
    streams: dict[int, Any] = {}
    #: Addresses of pinned memory, which is kept for good: a freed address may come again.
    pinned: dict[int, torch.Tensor] = {}
    #: Asynchronous copies that the host has not waited for: number, and what happens when it does.
    pending: list[tuple[int, Callable[[], None]]] = []
    number = 0
    #: Allocations until one fails; None is never.
    left: int | None = None
    #: What it raises.
    error: BaseException = torch.OutOfMemoryError()
    #: Allocations since `out_of_memory` was entered.
    allocated = 0


def _place(frame: Any) -> str:
    path = frame.f_code.co_filename
    at = path.rfind(PROJECT)
    short = path[at + len(PROJECT) :] if at >= 0 else os.sep.join(path.split(os.sep)[-2:])
    return f"{short}:{frame.f_lineno} {frame.f_code.co_name}"


def who() -> tuple[str, str]:
    """The project's innermost line, and that of the code that it called."""
    frame, by = sys._getframe(2), ""
    while frame is not None:
        path = frame.f_code.co_filename
        if PROJECT in path:
            return _place(frame), by
        if not by and not any(noise in path for noise in _NOISE):
            by = _place(frame)
        frame = frame.f_back
    return "", by


def note(
    kind: str, op: str, device: Any, size: int = 0, dtype: Any = "", upto: int | None = None
) -> None:
    """Tell the watchers; a wait ends the copies begun before ``upto``, or all of them."""
    if State.tape is not None and kind in ("sync", "h2d"):
        site, by = who()
        raise RuntimeError(
            f"CUDA error: operation not permitted when stream is capturing: {op} at {site or by}"
        )
    if kind == "sync":
        flush(upto)
    strict = kind == "sync" and (getattr(State.forbidden, "depth", 0) or State.sync_mode == 2)
    if not State.watchers and not strict:
        return
    event = Event(kind, op, str(device), *who(), size, str(dtype).removeprefix("torch."))
    for seen in State.watchers:
        seen.events.append(event)
    if strict:
        raise RuntimeError(f"the host waits for {device}: {op} at {event.site or event.by}")


@contextmanager
def watch() -> Iterator[Seen]:
    """Collect what happens."""
    seen = Seen()
    State.watchers.append(seen)
    try:
        yield seen
    finally:
        State.watchers.remove(seen)


@contextmanager
def no_sync() -> Iterator[None]:
    """Raise where the host would wait."""
    State.forbidden.depth = getattr(State.forbidden, "depth", 0) + 1
    try:
        yield
    finally:
        State.forbidden.depth -= 1


@contextmanager
def out_of_memory(at: int | None, error: BaseException | None = None) -> Iterator[type[State]]:
    """Let the allocation of this number, counted from 1, fail; None only counts them.

    ``error`` is what it raises; None is what PyTorch's allocator for GPUs does.
    """
    State.left, State.allocated = at, 0
    told = "CUDA out of memory. Tried to allocate 20.00 MiB."
    State.error = error or torch.OutOfMemoryError(told)
    try:
        yield State
    finally:
        State.left = None


def allocate() -> None:
    """One allocation; it may be the one that fails."""
    State.allocated += 1
    if State.left is not None:
        State.left -= 1
        if State.left == 0:
            raise State.error


# -------------------------------------------------------------------------- pinned memory


def is_pinned(tensor: torch.Tensor) -> bool:
    """Whether a tensor of the CPU lies in pinned memory."""
    return tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in State.pinned


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, declared to be in pinned memory."""
    State.pinned[tensor.untyped_storage().data_ptr()] = tensor
    return tensor


def _later(act: Callable[[], None]) -> None:
    State.number += 1
    State.pending.append((State.number, act))


def flush(upto: int | None = None) -> None:
    """The host has waited: the copies begun by then are done."""
    done = [act for number, act in State.pending if upto is None or number <= upto]
    State.pending = [one for one in State.pending if upto is not None and one[0] > upto]
    with torch.inference_mode():  # which the copies may have begun in
        for act in done:
            act()


def read_back(to: torch.Tensor, source: torch.Tensor) -> None:
    """Device to pinned memory: nothing is to be read there until the host has waited."""
    values = source.clone()
    if to.dtype.is_floating_point:
        to.fill_(torch.nan)
    else:
        to.fill_(to.dtype == torch.bool or torch.iinfo(to.dtype).min)

    def arrive() -> None:
        with torch.inference_mode():  # as it was begun; the wait may be anywhere
            to.copy_(values)

    _later(arrive)


def send(to: torch.Tensor, source: torch.Tensor, site: str) -> None:
    """Pinned memory to device: not to be changed until the host has waited."""
    values = source.clone()
    to.copy_(values)

    def check() -> None:
        if not torch.equal(source, values):
            raise RuntimeError(f"pinned memory was changed before its copy at {site} was over")

    _later(check)
