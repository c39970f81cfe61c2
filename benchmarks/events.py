"""What a GPU is asked for: counted by PyTorch's profiler on a real one, else on a simulated one.

The simulated one is `tests.support.gpu`, which a checkout has; see there what it cannot show.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Counts(NamedTuple):
    """What the host asked for.

    Attributes:
        launches: Of kernels and copies; a replay of a graph is one.
        waits: How often the host waited for the GPU.
        pageable: Copies to the GPU from memory that is not pinned.
        kernels: Kernels inside the graphs that were replayed.
    """

    launches: float
    waits: float
    pageable: float
    kernels: float

    def minus(self, other: Counts) -> Counts:
        """What is left when another run's are taken away."""
        return Counts(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))

    def per(self, number: float) -> Counts:
        """Each over a number."""
        return Counts(*(round(one / number, 2) for one in self))


def have_gpu() -> None:
    """Simulate a GPU where PyTorch has no kernels for one; before the first tensor."""
    if torch.backends.cuda.is_built():
        return
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.support import gpu

    gpu.install(devices=2)


def counted(work: Callable[[], Any]) -> Counts:
    """What some work asks the GPU for."""
    watch = Watch()
    watch.begin()
    work()
    return watch.end()


class Watch:
    """Counts between `begin` and `end`."""

    def __init__(self) -> None:
        self._real = torch.backends.cuda.is_built()
        self._stack = contextlib.ExitStack()
        self._seen: Any = None

    def begin(self) -> None:
        """Count from here on."""
        if self._real:
            kinds = torch.profiler.ProfilerActivity
            torch.cuda.synchronize()
            watched: Any = torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA])
        else:
            from tests.support import gpu

            watched = gpu.watch()
        self._seen = self._stack.enter_context(watched)

    def end(self) -> Counts:
        """What there was."""
        if self._real:
            torch.cuda.synchronize()
        self._stack.close()
        return _profiled(self._seen) if self._real else _simulated(self._seen)


def _simulated(seen: Any) -> Counts:
    captures = [one for one in seen.syncs if "before capture" in one.op]
    blocking = [one for one in seen.syncs if one.op == "h2d copy"]
    graphs = [one.size for one in seen.of("launch") if one.op == "graph"]
    return Counts(
        launches=len(seen.of("launch")),
        waits=len(seen.syncs) - len(captures),
        pageable=len(seen.of("h2d")) + len(blocking),
        kernels=sum(graphs),
    )


def _profiled(seen: Any) -> Counts:
    on_gpu = torch.autograd.DeviceType.CUDA
    events = list(seen.events())
    done = [one.name for one in events if one.device_type == on_gpu]
    called = Counter(one.name for one in events if one.device_type != on_gpu)

    def calls(*parts: str) -> int:
        return sum(n for name, n in called.items() if any(part in name for part in parts))

    single = calls("LaunchKernel", "cudaMemcpyAsync", "cudaMemsetAsync")
    return Counts(
        launches=single + calls("cudaGraphLaunch"),
        waits=calls("StreamSynchronize", "EventSynchronize", "DeviceSynchronize") - 1,  # `end`'s
        pageable=sum("HtoD (Pageable" in name for name in done),
        kernels=max(0, len(done) - single),
    )
