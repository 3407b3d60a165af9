"""Keeping freed memory, and telling an allocation that failed from other errors."""

import platform

import pytest
import torch

from splatgen.models.memory import is_out_of_memory, keep_freed


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_the_allocator_is_told_where_it_can_be() -> None:
    assert keep_freed()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_failed_allocations_are_known(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
