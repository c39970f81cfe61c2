"""Several processes: who this one is, and how they tell each other what they have.

Each process evaluates a share of the documents; lm-eval puts the shares together. Where one waits
for others, it does so inside `watched`, which ends in one line if another is stopped or lost.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch

from trimix_lm_eval.utils import heartbeat
from trimix_lm_eval.utils.heartbeat import Heartbeat

#: Of this process, once it has joined others.
_heartbeat: Heartbeat | None = None
#: What torch's errors of processes say that are no `DistError`.
_BROKEN = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe")


class DistributedEnv(NamedTuple):
    """Of this process among all.

    Attributes:
        rank: Counted over all nodes.
        world: Number of processes.
        device: Where its models go; None leaves the choice.
    """

    rank: int = 0
    world: int = 1
    device: str | None = None


def join() -> DistributedEnv:
    """Find this process's place, as its launcher (accelerate, torchrun) tells it.

    Raises:
        TrimixError: Another process has ended meanwhile, or `heartbeat.limit` has no number.
    """
    global _heartbeat
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return DistributedEnv()
    from accelerate import PartialState

    limit = heartbeat.limit()
    # The first rank to finish waits for the slowest, however long that takes.
    timeout = timedelta(weeks=52)
    with heartbeat.patience():
        _forget_attempts(timeout)
        state = PartialState(not torch.cuda.is_available(), timeout=timeout)
    if _heartbeat is None:
        # A process that ends with its communication threads alive aborts, and its launcher ends
        # the others with it.
        atexit.register(state.destroy_process_group)
        _heartbeat = Heartbeat(state.process_index, state.num_processes, limit)
        atexit.register(_heartbeat.end)
    device = "cpu" if state.device.type == "cpu" else str(state.device)
    # process_index, not local_process_index: on several nodes the local one repeats.
    return DistributedEnv(state.process_index, state.num_processes, device)


def _forget_attempts(timeout: timedelta) -> None:
    """After a restart by torchrun, find each other under names of this attempt.

    Its store lives on, and may still have the addresses of the processes before.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or torch.distributed.is_initialized():
        return
    store, rank, world = next(torch.distributed.rendezvous("env://", timeout=timeout))
    torch.distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=torch.distributed.PrefixStore(f"attempt {attempt}", store),
        rank=rank,
        world_size=world,
        timeout=timeout,
    )


@contextmanager
def watched(world: int) -> Iterator[None]:
    """Wait for other processes inside, but not for one that is stopped or lost.

    Raises:
        TrimixError: Another process has ended or cannot be reached. Where one is silent, this
            process ends without raising anything: it cannot be called back from where it waits.
    """
    if world < 2 or _heartbeat is None:
        yield
        return
    with _heartbeat.watching():
        try:
            yield
        except RuntimeError as error:
            text = str(error).lower()
            known = isinstance(error, torch.distributed.DistError)
            if not known and not any(word in text for word in _BROKEN):
                raise
            raise _heartbeat.lost(error) from error


def concatenated(tensor: torch.Tensor, world: int) -> torch.Tensor:
    """A tensor of each process, one after the other, on every process."""
    if world < 2:
        return tensor
    from accelerate.utils import gather

    with watched(world):
        gathered: torch.Tensor = gather(tensor)
    return gathered


def exchanged(mine: Any, world: int) -> list[Any]:
    """One object from every process, on every process."""
    if world < 2:
        return [mine]
    parts: list[Any] = [None] * world
    with watched(world):
        torch.distributed.all_gather_object(parts, mine)
    return parts


def collected(mine: Any, rank: int, world: int, on: int) -> list[Any] | None:
    """One object from every process on process ``on``; None elsewhere."""
    if world < 2:
        return [mine]
    parts: list[Any] | None = [None] * world if rank == on else None
    with watched(world):
        torch.distributed.gather_object(mine, parts, dst=on)
    # A process may end right after this call, while a thread of gloo still drops the tensors
    # it sent; that thread would find no interpreter and abort. A barrier holds none.
    wait(world)
    return parts


def wait(world: int) -> None:
    """Wait for all processes."""
    if world > 1:
        with watched(world):
            torch.distributed.barrier()
