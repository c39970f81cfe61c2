"""Bytes of the tensors that are alive, and the most that ever were."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the memory of tensors that operators make while it is entered.

    Attributes:
        peak: The most bytes at a time.
        largest: The bytes of the largest tensor, and the operator that made it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.largest = (0, "")
        self._seen: dict[int, list[int]] = {}  # by address: tensors on that memory, and its bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_memory(x).data_ptr() for x in tree_leaves((args, kwargs)) if _is_tensor(x)}
        out = func(*args, **(kwargs or {}))
        for tensor in filter(_is_tensor, tree_leaves(out)):
            at, size = _memory(tensor).data_ptr(), _memory(tensor).nbytes()
            if not size or (at in before and at not in self._seen):
                continue  # what was there before it was entered
            if at not in self._seen:
                self._seen[at] = [0, size]
                self.now += size
                self.peak = max(self.peak, self.now)
                self.largest = max(self.largest, (size, str(func)))
            self._seen[at][0] += 1
            weakref.finalize(tensor, self._gone, at, self._seen[at])
        return out

    def _gone(self, at: int, entry: list[int]) -> None:
        entry[0] -= 1
        if not entry[0] and self._seen.get(at) is entry:
            del self._seen[at]
            self.now -= entry[1]


def _is_tensor(one: Any) -> bool:
    return isinstance(one, torch.Tensor)


def _memory(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
