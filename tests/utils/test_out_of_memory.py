"""What is taken for memory that ran out, of a GPU or of the host."""

from __future__ import annotations

import errno

import pytest
import torch

from trimix_lm_eval.utils.errors import TrimixError, is_out_of_memory

TOLD = [
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasLtCreate(&lt_handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "HIP out of memory. Tried to allocate 20.00 MiB",
    "MPS backend out of memory (MPS allocated: 17.9 GB)",
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 35184372088832 bytes. Error code 12 (Cannot allocate memory)",
    "DefaultCPUAllocator: not enough memory: you tried to allocate 1073741824 bytes.",
    "std::bad_alloc",
]
OTHERS = [
    "CUDA error: device-side assert triggered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasGemmEx(...)`",
    "Expected all tensors to be on the same device",
    "The size of tensor a (3) must match the size of tensor b (4)",
]


@pytest.mark.parametrize("told", TOLD)
def test_known_by_what_they_say(told):
    assert is_out_of_memory(RuntimeError(told))


@pytest.mark.parametrize("told", OTHERS)
def test_other_errors(told):
    assert not is_out_of_memory(RuntimeError(told))


def test_known_by_their_kind():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_an_error_on_the_way_out_of_one_is_one():
    """As where the end of a capture fails because what was captured did."""

    def capture():
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error")

    with pytest.raises(RuntimeError) as caught:
        capture()
    assert is_out_of_memory(caught.value)


def test_what_a_user_is_told_in_the_end_is_not_tried_again():
    told = TrimixError("Out of memory with a batch of one: CUDA out of memory.")
    told.__cause__ = torch.OutOfMemoryError()
    assert not is_out_of_memory(told)
