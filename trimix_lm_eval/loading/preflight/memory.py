"""Devices, and what the weights and the caches of the sources need on each.

Parameters are counted on a model without storage (PyTorch's ``meta`` device), and what it keeps of
a text is read off its cache (`kept`), so the estimate takes about a second even for the largest
models. Activations and logits are not in it: they depend on the batch, which is halved when it does
not fit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import nn

from trimix_lm_eval.loading.preflight.access import Files, label
from trimix_lm_eval.loading.preflight.files import tensors_of
from trimix_lm_eval.loading.preflight.kept import BUILT_IN, Kept, kept_by
from trimix_lm_eval.loading.settings import SourceSpec
from trimix_lm_eval.loading.text_part import of_text, text_part
from trimix_lm_eval.utils.columns import aligned
from trimix_lm_eval.utils.errors import TrimixError, first_line

GIB = 1024**3
#: The device name under which the layers are spread over all GPUs.
SPREAD = "auto"
#: bytes per quantized weight: int8; 4 bits and one fp32 scale per block of 64.
_QUANTIZED = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
#: What `_look` has found, by config: runs that are checked in turn share models, and families.
_looks: dict[tuple[type, str, str | None, int], _Seen] = {}


class Estimate(NamedTuple):
    """What one source needs.

    Attributes:
        source: Its role.
        path: Where it comes from.
        device: A device, or ``auto`` for all GPUs together.
        precision: The dtype of the weights, or how they are quantized.
        parameters: How many; None if unknown.
        weights: Bytes; None if unknown.
        cache: Bytes of keys and values per token and row, sliding windows not deducted; None if
            unknown.
        states: Bytes per row of what layers keep that have no keys and values.
    """

    source: str
    path: str
    device: str
    precision: str
    parameters: int | None
    weights: int | None
    cache: int | None
    states: int = 0


class _Seen(NamedTuple):
    """What a model without storage shows: parameters that bitsandbytes would quantize, others."""

    linear: int
    rest: int
    kept: Kept | None


def devices() -> list[str]:
    """The devices of this machine: ``cpu``, then every GPU that PyTorch sees."""
    if not torch.accelerator.is_available():
        return ["cpu"]
    kind = torch.get_device_module().__name__.split(".")[-1]
    return ["cpu", *(f"{kind}:{i}" for i in range(torch.accelerator.device_count()))]


def free_memory(names: Iterable[str]) -> dict[str, int | None]:
    """Free bytes on some of `devices`; None where a device does not say.

    Where several processes share the machine, each is taken to have its part of the main memory.
    Asking a GPU costs memory on it, so only those that will be used should be asked.
    """
    free: dict[str, int | None] = {}
    for name in names:
        kind, _, index = name.partition(":")
        module = torch.get_device_module(kind)
        if kind == "cpu":
            processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
            free[name] = psutil.virtual_memory().available // processes
        elif hasattr(module, "mem_get_info"):
            free[name] = module.mem_get_info(int(index))[0]
        else:
            free[name] = None
    return free


def place(spec: SourceSpec, names: list[str], default: str | None = None) -> str:
    """The device a source goes to: one of ``names`` (all of `devices`), or ``auto``.

    If neither it nor ``default`` names one, it is the first GPU, or the CPU.

    Raises:
        TrimixError: Its device does not exist here.
    """
    gpus = names[1:]
    given = spec.device or default
    if given == SPREAD:
        return SPREAD if gpus else "cpu"
    if given is None:
        return gpus[0] if gpus else "cpu"
    if gpus and given == gpus[0].partition(":")[0]:  # "cuda" is "cuda:0"
        return gpus[0]
    if given not in names:
        raise TrimixError(
            f"{label(spec)}: there is no device {given!r} here.",
            f"devices here: {', '.join([*names, SPREAD])}"
            + ("" if gpus else " (PyTorch sees no GPU)"),
        )
    return given


def estimate(spec: SourceSpec, config: Any, files: Files, device: str) -> Estimate:
    """Estimate what a source needs on a device.

    The sizes of its files stand in where parameters cannot be counted.

    Raises:
        TrimixError: Its ``attn_implementation`` cannot be had.
    """
    stored = getattr(config, "quantization_config", None)
    dtype = spec.dtype if spec.dtype != "auto" else str(stored_dtype(config)).split(".")[-1]
    size = _BYTES.get(dtype, 4)
    seen = _seen(spec, config, size)
    weights = (_stored_bytes(spec, config) if stored else None) or files.weight_bytes
    precision = "as stored" if stored else dtype
    if seen is not None and not stored:
        per_linear = _QUANTIZED[spec.quantization] if spec.quantization else size
        weights = round(seen.linear * per_linear + seen.rest * size)
        precision = spec.quantization or dtype
    parameters = None if seen is None else seen.linear + seen.rest
    kept = None if seen is None else seen.kept
    return Estimate(
        spec.name, spec.path, device, precision, parameters, weights, *(kept or (None, 0))
    )


def check_fit(estimates: Sequence[Estimate], free: dict[str, int | None]) -> None:
    """Check that the weights fit into what is free."""
    left = dict(free)
    for device, available in free.items():
        here = [e for e in estimates if e.device == device]
        needed = sum(e.weights or 0 for e in here)
        if available is not None:
            if needed > available:
                raise _too_large(here, device, needed, available)
            left[device] = available - needed
    spread = [e for e in estimates if e.device == SPREAD]
    gpus = [bytes_ for device, bytes_ in left.items() if device != "cpu"]
    known = [bytes_ for bytes_ in gpus if bytes_ is not None]
    needed = sum(e.weights or 0 for e in spread)
    if spread and len(known) == len(gpus) and needed > sum(known):
        raise _too_large(spread, "all GPUs together", needed, sum(known))


def table(estimates: Sequence[Estimate], free: dict[str, int | None]) -> list[str]:
    """The estimates as lines of text."""
    head = ["source", "model", "device", "precision", "parameters", "weights", "cache/1k tokens"]
    stateful = any(e.states for e in estimates)
    rows = [[*head, "states/row"] if stateful else head]
    for e in estimates:
        count = "?" if e.parameters is None else f"{e.parameters / 1e6:,.1f} M"
        cache = None if e.cache is None else e.cache * 1000
        sizes = [gib(e.weights), gib(cache), *([gib(e.states)] if stateful else [])]
        rows.append([e.source, e.path, e.device, e.precision, count, *sizes])
    lines = aligned(rows)
    for device in dict.fromkeys(e.device for e in estimates):
        needed = sum(e.weights or 0 for e in estimates if e.device == device)
        there = f"{gib(free[device])} free" if device in free else "spread over all GPUs"
        lines.append(f"{device}: {gib(needed)} of weights, {there}")
    return [line.rstrip() for line in lines]


def gib(size: int | None) -> str:
    """Bytes for reading."""
    return "?" if size is None else f"{size / GIB:.2f} GiB"


def stored_dtype(config: Any) -> Any:
    """The dtype of a checkpoint; where it does not say, the one that costs most."""
    for part in (config, config.get_text_config()):
        for name in ("dtype", "torch_dtype"):
            if getattr(part, name, None) is not None:
                return getattr(part, name)
    return torch.float32


def _stored_bytes(spec: SourceSpec, config: Any) -> int | None:
    """Bytes of a local folder's tensors that belong to the text; None if that cannot be told."""
    try:
        tensors = tensors_of(Path(spec.path, spec.subfolder))
        part = text_part(config, spec.trust_remote_code)
        if part is None:
            return None
        with torch.device("meta"):
            names = of_text(part.build(), tensors)
    except Exception:  # code that cannot be built without storage, or files of another kind
        return None
    return sum(tensors[name].nbytes for name in names) or None


def _seen(spec: SourceSpec, config: Any, size: int) -> _Seen | None:
    """`_look`, once for a config, wherever it lies; a repository's code may have changed."""
    if spec.trust_remote_code:
        return _look(spec, config, size)
    content = {**config.to_dict(), "_name_or_path": ""}
    key = (type(config), json.dumps(content, default=str), spec.attn_implementation, size)
    if key not in _looks:
        found = _look(spec, config, size)
        if found is None:
            return None
        _looks[key] = found
    return _looks[key]


def _look(spec: SourceSpec, config: Any, size: int) -> _Seen | None:
    """Build the model without storage, count parameters, and see what it keeps of a text."""
    extra: dict[str, Any] = {}
    if spec.trust_remote_code:
        extra["trust_remote_code"] = True
    if spec.attn_implementation:
        extra["attn_implementation"] = spec.attn_implementation
    try:
        part = text_part(config, spec.trust_remote_code)
        if part is None:
            return None
        with torch.device("meta"):
            model = part.build(dtype=BUILT_IN, **extra)
    except Exception as error:
        if spec.attn_implementation and isinstance(error, (ImportError, ValueError)):
            raise TrimixError(
                f"{label(spec)}: attn_implementation={spec.attn_implementation} cannot be had: "
                f"{first_line(error)}",
                "leave it out, or give sdpa or eager",
            ) from error
        return None  # code of its own that cannot be built without storage
    head = model.get_output_embeddings()
    linear = sum(
        m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head
    )
    total = sum(p.numel() for p in model.parameters())  # tied ones once
    return _Seen(linear, total - linear, kept_by(model, size))


def _too_large(sources: list[Estimate], device: str, needed: int, available: int) -> TrimixError:
    """The error for weights that do not fit, with what each source takes."""
    parts = ", ".join(f"{e.source} {gib(e.weights)}" for e in sources)
    return TrimixError(
        f"The weights need {gib(needed)} on {device}, where {gib(available)} are free: {parts}.",
        "try quantization=int8 or nf4 (or large_quantization=...), dtype=bfloat16, another device "
        "for some sources (small_device=cuda:1), or device=auto to spread the layers over all GPUs",
    )
