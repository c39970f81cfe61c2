"""Puts the simulated GPU in the place of CUDA."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.utils._device

from tests.support.gpu import graphs, kernels
from tests.support.gpu.events import State, flush, is_pinned, note, pinned


class SimulatedEvent:
    """CUDA's, on the CPU's clock; recorded on the current device unless a stream is given."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self.at, self.device, self.number = 0.0, "", 0

    def record(self, stream: Any = None) -> None:
        self.at, self.number = time.perf_counter(), State.number
        self.device = str(getattr(stream, "device", torch.device("cuda", State.index)))
        note("event", "event.record", self.device)

    def wait(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        note("sync", "event.synchronize", self.device, upto=self.number)

    def query(self) -> bool:
        flush(self.number)
        return True

    def elapsed_time(self, other: SimulatedEvent) -> float:
        return (other.at - self.at) * 1e3


_STREAMS = itertools.count(1)


class SimulatedStream:
    """One of a device, where all work is done in the order in which it is asked for."""

    def __init__(self, device: Any = None, **_: Any) -> None:
        self.device = torch.device("cuda", _number(device))
        self.cuda_stream = next(_STREAMS)

    def synchronize(self) -> None:
        note("sync", "stream.synchronize", self.device)

    def wait_stream(self, stream: Any) -> None:
        pass

    wait_event = wait_stream


def _number(device: Any) -> int:
    if device is None:
        return State.index
    return device if isinstance(device, int) else kernels.indexed(torch.device(device)).index


@contextlib.contextmanager
def _current(device: Any) -> Iterator[None]:
    before, State.index = State.index, _number(device)
    try:
        yield
    finally:
        State.index = before


def _current_stream(device: Any = None) -> SimulatedStream:
    index = _number(device)
    return State.streams.get(index) or _default_stream(index)


def _default_stream(device: Any = None) -> SimulatedStream:
    stream = SimulatedStream(device)
    stream.cuda_stream = 0
    return stream


@contextlib.contextmanager
def _on_stream(stream: SimulatedStream) -> Iterator[None]:
    index = stream.device.index
    before, State.streams[index] = State.streams.get(index), stream
    try:
        yield
    finally:
        State.streams[index] = before


def _set_sync_mode(mode: int | str) -> None:
    State.sync_mode = {"default": 0, "warn": 1, "error": 2}.get(str(mode), mode)  # type: ignore[assignment]


class _Properties(NamedTuple):
    name: str = "simulated"
    major: int = 9
    minor: int = 0
    total_memory: int = 80 * 2**30
    multi_processor_count: int = 132


def _module() -> dict[str, Any]:
    """What a program asks of ``torch.cuda``."""
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: State.devices,
        "current_device": lambda: State.index,
        "set_device": lambda device: setattr(State, "index", _number(device)),
        "device": _current,
        "mem_get_info": lambda device=None: (80 * 2**30, 80 * 2**30),
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "synchronize": lambda device=None: note("sync", "synchronize", _number(device)),
        "get_sync_debug_mode": lambda: State.sync_mode,
        "set_sync_debug_mode": _set_sync_mode,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "simulated",
        "get_device_properties": lambda device=None: _Properties(),
        "current_stream": _current_stream,
        "default_stream": _default_stream,
        "stream": _on_stream,
        "Event": SimulatedEvent,
        "Stream": SimulatedStream,
        "is_current_stream_capturing": lambda: State.tape is not None,
        "CUDAGraph": graphs.Graph,
        "graph": graphs.graph,
        "graph_pool_handle": lambda: (0, next(graphs.Pools.numbers)),
    }


def _pinning(make: Any) -> Any:
    """A factory that knows ``pin_memory`` although there is no allocator for it."""

    @functools.wraps(make)
    def made(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Any:
        tensor = make(*args, **kwargs)
        return pinned(tensor) if pin_memory else tensor

    return made


#: PyTorch ships this guard for its own tests.
_GUARD = """
#include <c10/core/impl/FakeGuardImpl.h>
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::FakeGuardImpl<c10::DeviceType::CUDA>);
"""
_KEPT: list[Any] = []


def _build_guard() -> None:
    """Compile the device guard, which takes seconds and is done once, and load it."""
    base = os.path.dirname(torch.__file__)
    folder = os.path.join(tempfile.gettempdir(), f"simulated-gpu-{torch.__version__}-{os.getuid()}")
    path = os.path.join(folder, "guard.so")
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        own = f"{path}.{os.getpid()}"
        options = ["-std=c++20", "-O0", "-shared", "-fPIC", "-x", "c++", "-", "-o", own]
        where = [f"-I{base}/include", f"-L{base}/lib", "-lc10"]
        subprocess.run(["c++", *options, *where], input=_GUARD, text=True, check=True)
        os.replace(own, path)
    ctypes.CDLL(path)


def install(devices: int = 2) -> None:
    """Make ``torch.device("cuda")`` work; once per process, before the first tensor."""
    State.devices = devices
    if _KEPT:
        return
    if torch.backends.cuda.is_built():
        raise RuntimeError("a PyTorch built for CUDA has kernels of its own: use its CPU build")
    _build_guard()
    for name, value in _module().items():
        setattr(torch.cuda, name, value)
    # A module that moves is to get new parameters, not the old ones with a new storage.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    here = torch.device("cuda")
    torch._C._accelerator_getAccelerator = lambda: here
    torch._C._get_accelerator = lambda check=None: here
    torch._C._accelerator_getDeviceIndex = lambda: State.index
    _register()
    _replace_factories()


def _register() -> None:
    """The kernels, for CUDA."""
    library = torch.library.Library("aten", "IMPL")
    own: dict[str, Any] = {
        "aten::empty.memory_format": kernels.empty,
        "aten::empty_strided": kernels.empty_strided,
        "aten::copy_": kernels.copy,
        "aten::scaled_dot_product_attention": kernels.attention,
        "aten::convolution": kernels.convolution,
        "aten::_grouped_mm": kernels.grouped_mm,
        "aten::bmm.dtype": kernels.bmm_in_fp32,
        "aten::bmm.dtype_out": kernels.bmm_in_fp32,
    }
    # Views that PyTorch otherwise makes in C++, of a storage that is not there.
    for full in ("aten::_unsafe_view", "aten::alias", "aten::detach", "aten::lift_fresh"):
        op = getattr(torch.ops.aten, full.removeprefix("aten::")).default
        own[full] = functools.partial(kernels.kernel, full, op)
    own["aten::view.dtype"] = functools.partial(
        kernels.kernel, "aten::view.dtype", torch.ops.aten.view.dtype
    )
    for full in torch._C._dispatch_get_registrations_for_dispatch_key("CPU"):
        space, _, rest = full.partition("::")
        base, _, overload = rest.partition(".")
        if space == "aten" and full not in own:
            op = getattr(getattr(torch.ops.aten, base), overload or "default")
            own[full] = functools.partial(kernels.kernel, full, op)
    for full, one in own.items():
        library.impl(full.removeprefix("aten::"), one, "CUDA")
    _KEPT.append(library)


def _replace_factories() -> None:
    """Generators, and what makes pinned memory."""
    real = torch.Generator
    _KEPT.append(real)

    class Generator(real):  # type: ignore[misc, valid-type]
        """A generator of the simulated device is the CPU's: noise is the same."""

        def __new__(cls, device: Any = "cpu") -> Any:
            kind = torch.device(device).type
            return real.__new__(cls, device="cpu" if kind == "cuda" else device)

    torch.Generator = Generator  # type: ignore[misc]
    torch.Tensor.pin_memory = (  # type: ignore[method-assign]
        lambda self, device=None: self if is_pinned(self) else pinned(self.clone())
    )
    torch.Tensor.is_pinned = lambda self, device=None: is_pinned(self)  # type: ignore[method-assign]
    torch.utils._device._device_constructors()  # `with torch.device(...)` knows the originals
    for name in ("empty", "zeros", "ones", "full", "tensor", "empty_like", "zeros_like"):
        setattr(torch, name, _pinning(getattr(torch, name)))
