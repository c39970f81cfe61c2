"""A simulated GPU: ``torch.device("cuda")`` on PyTorch's CPU build, with a GPU's manners.

    from tests.support import gpu
    gpu.install(devices=2)              # once per process, before the first tensor
    x = torch.ones(3, device="cuda:1")  # the values are real; they lie in the CPU's memory
    x + torch.ones(3)                   # RuntimeError, as on a GPU
    with gpu.watch() as seen:           # what was launched and copied, and where the host waited
        x.tolist()
    seen.syncs                          # [Event(kind='sync', op='tolist', site=...)]
    with gpu.no_sync(): ...             # raises where the host would wait
    with gpu.out_of_memory(at=7): ...   # the seventh allocation fails

A program and its child processes have it with the folder ``site`` in PYTHONPATH.

How it works: a tensor of the simulated device holds a CPU tensor. Every kernel that PyTorch has for
CPUs is registered for CUDA as well, so that composite operators fall apart in C++ as they do there;
what arrives in `kernels` is what would be a kernel launch, a copy or a view. PyTorch's CPU build
lacks two lines, a device guard, for which a C++ compiler is needed once.

What it does as a GPU does: it refuses operators whose tensors lie on different devices; fresh
memory is NaN; launches, waits of the host and copies are counted with the project's file and line;
a copy to pinned memory is junk until the host has waited for an event or a stream, and what was
sent from pinned memory must not change before that; a CUDA graph records kernels without running
them, raises where a capture would (a wait, a copy from or to pageable memory), and replays on the
same memory.

What it cannot show: time; races between streams, since it has one per device; real limits of
memory; how a GPU rounds, since the arithmetic is the CPU's; kernels that only CUDA has, and those
that refuse a shape or a type there.
"""

from tests.support.gpu.events import Event, Seen, no_sync, out_of_memory, watch
from tests.support.gpu.install import install

__all__ = ["Event", "Seen", "install", "no_sync", "out_of_memory", "watch"]
