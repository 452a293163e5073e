"""Which errors say that there is no memory left."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from amopo.memory.exhausted import is_out_of_memory

FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
    "NCCL error: unhandled cuda error. Last error:\nCuda failure 2 'out of memory'",
    "NCCL Error 1: unhandled cuda error. Cuda failure 'out of memory'",
    "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
)
OTHERS = (
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
    "Triton Error [CUDA]: illegal memory access",
    "out of resource: shared memory, Required: 262144, Hardware limit: 232448",
    "index 7 is out of bounds",
)


@pytest.mark.parametrize("words", FULL)
def test_errors_of_every_library_that_finds_no_memory_are_known(words):
    assert is_out_of_memory(RuntimeError(words))


@pytest.mark.parametrize("words", OTHERS)
def test_other_errors_of_a_device_are_not(words):
    assert not is_out_of_memory(RuntimeError(words))


def test_the_allocators_own_error_is_known_by_its_type():
    assert is_out_of_memory(torch.OutOfMemoryError("whatever it says"))
    assert not is_out_of_memory(ValueError("CUDA out of memory"))


def test_a_tensor_that_no_memory_holds_is_one_of_them():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
