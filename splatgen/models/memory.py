"""Memory: keeping what is freed; "out of memory", "the GPU is gone" among errors. Imports nothing heavy."""

from __future__ import annotations

import ctypes
import sys

# How torch words it, on CUDA and in the CPU's allocator (c10/core/impl/alloc_cpu.cpp, Windows included).
# cuDNN and cuBLAS say it in words of their own (pytorch issues 108645 and 128601).
_WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: MemoryError, torch's own class, or its RuntimeError of the CPU."""
    cuda = getattr(sys.modules.get("torch"), "OutOfMemoryError", None)
    if isinstance(error, MemoryError) or (isinstance(cuda, type) and isinstance(error, cuda)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


_LOST = ("CUDA error", "CUDA driver error", "cuDNN error")


def is_lost_device(error: BaseException) -> bool:
    """Whether the GPU failed, or was taken away, otherwise than by want of memory: nothing on it can be read.

    (torch's AcceleratorError is a RuntimeError with these words.)
    """
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)
    return told and not is_out_of_memory(error)


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MOST = -1, -3, 2**31 - 1  # mallopt(3)


def keep_freed() -> bool:
    """Let this process keep the memory it frees; returns whether its allocator can be told so.

    glibc gives large blocks back to the kernel and has them faulted in again by the next step: more than
    half of the time of decoding 32 latents on a CPU.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    done = [mallopt(option, _MOST) for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD)]
    return all(done)
