"""Telling "out of memory" from other errors, whichever allocator says it. Imports nothing heavy."""

from __future__ import annotations

import sys

# How torch words it, on CUDA and in the CPU's allocator (c10/core/impl/alloc_cpu.cpp, Windows included).
_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: MemoryError, torch's own class, or its RuntimeError of the CPU."""
    cuda = getattr(sys.modules.get("torch"), "OutOfMemoryError", None)
    if isinstance(error, MemoryError) or (isinstance(cuda, type) and isinstance(error, cuda)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
