"""Whether an error says that a device has no memory left, and how much of it this process can have.

`is_out_of_memory(error)` knows the errors of torch's allocators, of the CUDA driver and runtime (a context, a module or
a library that finds no room), of cuBLAS and cuDNN, of Triton and of NCCL. `usable_bytes(device)` is what the plan of a
run may add up to.
"""

from __future__ import annotations

import torch

CONTEXT = 1 << 30  # assumed where the device does not answer
_NO_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "cudaErrorMemoryAllocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
    "HIP error: out of memory",
    "HIPBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)
_NCCL = ("Cuda failure", "out of memory")  # with a number, or not, between them


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU's allocator, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return any(words in text for words in _NO_MEMORY) or all(words in text for words in _NCCL)


def usable_bytes(device: torch.device) -> int | None:
    """What tensors of this process can take on a CUDA device: what is free and what its allocator holds already.

    So without the CUDA context, libraries and other processes, and within the fraction that was set for the process.
    None for a CPU.
    """
    if device.type != "cuda":
        return None
    try:
        free, total = torch.cuda.mem_get_info(device)
        usable = free + torch.cuda.memory_reserved(device)
    except RuntimeError:  # a device that has failed
        total = torch.cuda.get_device_properties(device).total_memory
        usable = total - CONTEXT
    return min(usable, int(total * torch.cuda.get_per_process_memory_fraction(device)))
