"""Tensors of the simulated GPU, and what each operator on them costs, waits for and refuses."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.gpu.events import (
    Event,
    State,
    allocate,
    is_pinned,
    note,
    read_back,
    send,
    who,
)
from tests.support.gpu.graphs import junk, leaves, owned, run


class SimulatedTensor(torch.Tensor):
    """A tensor of the simulated device; ``inner`` holds its values on the CPU."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> SimulatedTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # On to the kernels registered in `install`, by way of PyTorch's own composite ones.
        with torch._C._DisableTorchDispatch():
            return func(*args, **(kwargs or {}))

    def __repr__(self) -> str:  # printing is for people: no wait of the program's
        return f"{self.inner!r}@{self.device}"

    def data_ptr(self) -> int:  # by which accelerate tells weights apart
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        note("sync", "tolist", self.device, self.inner.nbytes)
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(
                f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to "
                "copy the tensor to host memory first."
            )
        return self.cpu().numpy()

    __array__ = numpy

    def __deepcopy__(self, memo: Any) -> SimulatedTensor:
        return SimulatedTensor(self.inner.clone(), self.device)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return SimulatedTensor, (self.inner, self.device)


#: Operators after which the host knows something of the values: it waits.
_WAITS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::nonzero.out",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::_unique",
    "aten::equal",
    "aten::bincount",
    "aten::repeat_interleave.Tensor",
    "aten::is_set_to",
}
_INDEXED = {
    "aten::index.Tensor",
    "aten::index.Tensor_out",
    "aten::_index_put_impl_",
    "aten::index_put_",
}
#: Operators that launch nothing: they allocate, or change what a tensor is called.
_FREE = {"aten::set_.source_Storage", "aten::resize_", "aten::_local_scalar_dense"}
_HALVES = {"aten::_softmax", "aten::_log_softmax"}
VIEWS = {"aten::_unsafe_view", "aten::_reshape_alias", "aten::lift_fresh"}
#: Operators beside the pointwise ones that take a number on the CPU.
_SCALARS = {
    "aten::fill_.Tensor",
    "aten::masked_fill_.Tensor",
    "aten::_index_put_impl_",
    "aten::index_put_",
    "aten::index_fill_.int_Tensor",
    "aten::where.self",
}


def _inner(tree: Any) -> Any:
    if isinstance(tree, SimulatedTensor):
        return tree.inner
    if isinstance(tree, (list, tuple)):
        return type(tree)(_inner(one) for one in tree)
    return tree


def _check(name: str, op: Any, tensors: list[torch.Tensor], device: torch.device) -> None:
    """Raise as CUDA would, where tensors of several devices meet."""
    others = [x for x in tensors if x.device != device]
    if not others:
        return
    on_cpu = all(x.device.type == "cpu" for x in others)
    if name in _INDEXED and tensors[0].device == device and on_cpu:
        for x in others:  # indices may come from the CPU; the host waits for their copy
            if not (x.dim() == 0 and x is tensors[-1]):
                note("sync", "index from the CPU", device, x.nbytes)
        return
    numbers = on_cpu and all(x.dim() == 0 for x in others)
    if numbers and (torch.Tag.pointwise in op.tags or name in _SCALARS):
        return
    devices = ", ".join(dict.fromkeys(str(x.device) for x in tensors))
    site, by = who()
    for seen in State.watchers:
        seen.events.append(Event("mismatch", name, devices, site, by))
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but {name} got {devices} at {site or by}"
    )


def kernel(name: str, op: Any, *args: Any, **kwargs: Any) -> Any:
    """Any kernel: on the CPU tensors inside."""
    tensors = leaves((args, tuple(kwargs.values())))
    held = [x for x in tensors if isinstance(x, SimulatedTensor)]
    if any(x.device.type == "cuda" for x in tensors if not isinstance(x, SimulatedTensor)):
        raise NotImplementedError(f"{name}: PyTorch made a view without asking")
    if not held:  # a factory
        device = torch.device(kwargs["device"])
        note("alloc", name, device)
        allocate()
        return SimulatedTensor(run(op, args, {**kwargs, "device": "cpu"}), indexed(device))
    device = held[0].device
    _check(name, op, tensors, device)
    if name in _WAITS and not (
        name == "aten::repeat_interleave.Tensor" and kwargs.get("output_size")
    ):
        note("sync", name, device, sum(x.nbytes for x in held))
    if name in _INDEXED and any(x.dtype in (torch.bool, torch.uint8) for x in tensors[1:]):
        note("sync", "index by a mask (nonzero)", device)
    is_view = op.is_view or name in VIEWS
    if is_view:
        note("view", name, device)
    elif name not in _FREE:
        note("launch", name, device, 0, held[0].dtype)
    if name in _HALVES and args[2]:  # to fp32 on the way: CUDA's kernels do that, the CPU's do not
        args = (args[0].inner.float(), args[1], False, *args[3:])
    if name.endswith(".Tensor") and len(args) > 1 and isinstance(args[1], (int, float)):
        args = (args[0], torch.tensor(args[1]), *args[2:])  # a number that lost its wrapping
    mine = {id(x.inner): x for x in held}
    if kwargs.get("device") is not None:
        kwargs["device"] = "cpu"
    out = run(op, _inner(args), {k: _inner(v) for k, v in kwargs.items()}, is_view)
    if op.is_view and not held[0].is_inference():  # a view is of the kind that its base is
        with torch.inference_mode(False):
            return _wrapped(out, mine, device)
    if not is_view and any(id(x) not in mine for x in leaves((out,))):
        allocate()
    return _wrapped(out, mine, device)


def _wrapped(out: Any, mine: dict[int, SimulatedTensor], device: torch.device) -> Any:
    if isinstance(out, torch.Tensor):
        same = mine.get(id(out))
        if same is None:
            return SimulatedTensor(out, device)
        if same.shape != out.shape or same.stride() != out.stride():  # resized, or transposed
            same.data = SimulatedTensor(out, device)
        return same
    if isinstance(out, (list, tuple)):
        return type(out)(_wrapped(one, mine, device) for one in out)
    return out


def indexed(device: torch.device) -> torch.device:
    """The device with its number."""
    if device.index is None:
        return torch.device("cuda", State.index)
    if device.index >= State.devices:
        raise RuntimeError(f"CUDA error: invalid device ordinal {device.index}")
    return device


def copy(to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """All copies, between devices and within one."""
    here, there = source.device, to.device
    if not source.numel():
        pass  # nothing is copied, and nobody waits
    elif here == there:
        note("launch", "copy", there)
    elif here.type == "cpu" and non_blocking and is_pinned(source):
        note("pinned", "h2d copy", there, source.nbytes)
        note("launch", "h2d copy", there)
        _begin(send, _inner(to), source, next(filter(None, who()), ""))
        return to
    elif here.type == "cpu":
        note("h2d" if non_blocking else "sync", "h2d copy", there, source.nbytes)
        note("launch", "h2d copy", there)
    elif there.type == "cpu" and non_blocking and is_pinned(to):
        note("pinned", "d2h copy", here, source.nbytes)
        note("launch", "d2h copy", here)
        _begin(read_back, to, _inner(source))
        return to
    elif there.type == "cpu":
        # Without waiting, values would be read before they are there.
        note("sync", "d2h copy (non-blocking!)" if non_blocking else "d2h copy", here)
        note("launch", "d2h copy", here)
    else:
        note("p2p", "p2p copy", f"{here}->{there}", source.nbytes)
        note("launch", "p2p copy", there)
    run(torch.ops.aten.copy_.default, (_inner(to), _inner(source)), {})
    return to


def _begin(act: Any, *args: Any) -> None:
    """Begin an asynchronous copy, or put it on the tape."""
    if State.tape is None:
        act(*args)
    else:
        State.tape.steps.append((act, args, {}, None))


def empty(
    size: Any,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
    memory_format: Any = None,
) -> SimulatedTensor:
    """``aten::empty.memory_format``."""
    allocate()
    made = torch.empty(size, dtype=dtype, memory_format=memory_format)
    return SimulatedTensor(owned(junk(made)), indexed(device))


def empty_strided(
    size: Any,
    stride: Any,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
) -> SimulatedTensor:
    """``aten::empty_strided``."""
    allocate()
    made = torch.empty_strided(size, stride, dtype=dtype)
    return SimulatedTensor(owned(junk(made)), indexed(device))


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: Any = None,
    enable_gqa: bool = False,
) -> Any:
    """One kernel, as the memory-efficient one on a GPU; a mask of odd width is padded first."""
    how = {"scale": scale, "enable_gqa": enable_gqa}
    tensors = leaves((query, key, value, attn_mask))
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        math = torch.ops.aten._scaled_dot_product_attention_math
        return math(query, key, value, attn_mask, dropout_p, is_causal, None, **how)[0]
    device = query.device
    _check("aten::scaled_dot_product_attention", torch.ops.aten.mm.default, tensors, device)
    if attn_mask is not None and attn_mask.shape[-1] % 16:
        for _ in range(2):  # constant_pad_nd: fill and copy
            note("launch", "sdpa: pad the mask", device)
    note("launch", "sdpa", device)
    allocate()
    attend = torch.nn.functional.scaled_dot_product_attention
    inner = _inner((query, key, value, attn_mask))
    return SimulatedTensor(run(attend, (*inner, dropout_p, is_causal), how), device)


def convolution(x: Any, weight: Any, bias: Any, *how: Any) -> Any:
    """``aten::convolution``: one kernel, whichever of CUDA's it is."""
    tensors = leaves((x, weight, bias))
    _check("aten::convolution", torch.ops.aten.mm.default, tensors, x.device)
    note("launch", "aten::convolution", x.device, 0, x.dtype)
    allocate()
    op = torch.ops.aten.convolution.default
    return SimulatedTensor(run(op, (*_inner((x, weight, bias)), *how), {}), x.device)


def grouped_mm(
    x: Any, weight: Any, offs: Any = None, bias: Any = None, out_dtype: Any = None
) -> Any:
    """Experts in one kernel, in bf16; other types look at the offsets on the host."""
    tensors = leaves((x, weight, offs, bias))
    _check("aten::_grouped_mm", torch.ops.aten.mm.default, tensors, x.device)
    if x.dtype != torch.bfloat16:
        note("sync", "aten::_grouped_mm, not in bf16", x.device)
    note("launch", "aten::_grouped_mm", x.device, 0, x.dtype)
    allocate()
    op = torch.ops.aten._grouped_mm.default
    made = run(op, (*_inner((x, weight, offs, bias)), out_dtype), {})
    return SimulatedTensor(made, x.device)


def bmm_in_fp32(a: Any, b: Any, out_dtype: Any, *, out: Any = None) -> Any:
    """``aten::bmm.dtype``: products of bf16 or fp16 that are not rounded; CUDA's alone."""
    if a.dtype not in (torch.bfloat16, torch.float16) or out_dtype != torch.float32:
        raise RuntimeError(f"bmm of {a.dtype} gives no {out_dtype}")
    tensors = [a, b] if out is None else [a, b, out]
    _check("aten::bmm.dtype", torch.ops.aten.mm.default, tensors, a.device)
    note("launch", "aten::bmm.dtype", a.device, 0, a.dtype)
    if out is not None:
        run(_product_into, (out.inner, a.inner, b.inner), {})
        return out
    allocate()
    return SimulatedTensor(run(_product, (a.inner, b.inner), {}), a.device)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.bmm(a.float(), b.float())


def _product_into(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return out.copy_(_product(a, b))
