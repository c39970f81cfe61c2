"""CUDA graphs of the simulated GPU: kernels on a tape, replayed on the same memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tests.support.gpu.events import State, note


def leaves(tree: Any) -> list[torch.Tensor]:
    """All tensors in nested sequences."""
    found: list[torch.Tensor] = []
    for one in tree:
        if isinstance(one, torch.Tensor):
            found.append(one)
        elif isinstance(one, (list, tuple)):
            found += leaves(one)
    return found


def junk(made: torch.Tensor) -> torch.Tensor:
    """A GPU's fresh memory is not zero: what is read before it is written must show."""
    if made.dtype.is_floating_point and made.numel():
        made.fill_(torch.nan)
    return made


class Tape:
    """Kernels that were captured: what to run, on which memory, and where its results belong."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, Any, Any, list[torch.Tensor] | None]] = []
        self.own: dict[int, torch.Tensor] = {}  # memory allocated while capturing
        self.before: dict[int, tuple[Any, Any]] = {}  # memory that a captured kernel would change

    def replay(self) -> None:
        for op, args, kwargs, results in self.steps:
            out = op(*args, **kwargs)
            if results is not None:
                for place, value in zip(results, leaves((out,)), strict=True):
                    place.copy_(value)


def owned(made: torch.Tensor) -> torch.Tensor:
    """Memory that belongs to the graph, if one is being captured."""
    if State.tape is not None:
        State.tape.own[made.untyped_storage().data_ptr()] = made
    return made


def _written(op: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    schema = getattr(op, "_schema", None)
    found: list[torch.Tensor] = []
    for i, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += leaves((value,))
    return found


def run(op: Any, args: Any, kwargs: Any, view: bool = False) -> Any:
    """Run a kernel on CPU tensors, or put it on the tape."""
    tape = State.tape
    if tape is None or view:
        return op(*args, **kwargs)
    written = _written(op, args, kwargs)
    for tensor in written:
        storage = tensor.untyped_storage()
        at = storage.data_ptr()
        if at not in tape.own and at not in tape.before:
            tape.before[at] = (storage, storage.clone())
    out = op(*args, **kwargs)  # for the shapes; undone when the capture ends
    results = [x for x in leaves((out,)) if not any(x is w for w in written)]
    for one in results:
        tape.own.setdefault(one.untyped_storage().data_ptr(), one)
    tape.steps.append((op, args, kwargs, None if written else results))
    return out


class Pools:
    """Of memory for graphs: what PyTorch's allocator asserts of them."""

    #: By pool, how many graphs it has; a failed capture counts for good.
    graphs: dict[Any, int] = {}
    #: Where a capture failed: for the allocator it goes on.
    broken: set[Any] = set()
    numbers = itertools.count(1)

    @classmethod
    def begin(cls, pool: Any) -> None:
        """A graph is about to be captured."""
        if pool in cls.broken:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        if cls.graphs.get(pool) == 0:  # unless none of its memory is in use, which is luck
            raise RuntimeError("INTERNAL ASSERT FAILED: use_count > 0 of a graph's pool")
        cls.graphs[pool] = cls.graphs.get(pool, 0) + 1


class Graph:
    """``torch.cuda.CUDAGraph``."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.tape: Tape | None = None
        self._pool: Any = None
        self.stream: Any = None

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        if State.tape is not None:
            raise RuntimeError("a graph is being captured already")
        self._pool = pool or (next(Pools.numbers), 0)
        Pools.begin(self._pool)
        self.stream = State.streams.get(State.index)
        self.tape = State.tape = Tape()

    def capture_end(self) -> None:
        tape, State.tape = State.tape, None
        for storage, values in tape.before.values():
            storage.copy_(values)
        for made in tape.own.values():
            junk(made)

    def replay(self) -> None:
        if self.tape is None:
            raise RuntimeError("replay of a graph that was not captured")
        note("launch", "graph", torch.device("cuda", State.index), len(self.tape.steps))
        self.tape.replay()

    def reset(self) -> None:
        if self.tape is not None:
            Pools.graphs[self._pool] -= 1
        self.tape = None

    __del__ = reset

    def pool(self) -> Any:
        return self._pool


@contextmanager
def graph(
    cuda_graph: Graph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
) -> Iterator[None]:
    """``torch.cuda.graph``: it waits for the device once, before."""
    note("sync", "graph: synchronize before capture", torch.device("cuda", State.index))
    before = State.streams.get(State.index)
    State.streams[State.index] = stream
    cuda_graph.capture_begin(pool, capture_error_mode)
    try:
        yield
    except BaseException as error:
        # What the kernels so far have changed is changed back, as nothing of it was run.
        cuda_graph.capture_end()
        if isinstance(error, torch.OutOfMemoryError):
            cuda_graph.reset()
            State.streams[State.index] = before
        else:  # neither stream nor pool is what it was before, as where CUDA ends a capture
            cuda_graph.tape = None
            Pools.broken.add(cuda_graph.pool())
        raise
    cuda_graph.capture_end()
    State.streams[State.index] = before
