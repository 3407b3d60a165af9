"""A small thread pool for kernels that release the GIL."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


@functools.lru_cache(maxsize=1)
def _pool(threads: int, pid: int) -> ThreadPoolExecutor:
    """The pool, built on first use; pid is part of the key because threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="splatgen-render")


def parallel(kernel: Callable[..., None], count: int, grain: int, *args: Any) -> None:
    """Run kernel(lo, hi, *args) over 0..count in pieces of at least `grain`, on torch's thread count.

    The kernels write to places that depend on the item alone, never on the piece it fell into, so
    results are bit-equal for every number of threads.
    """
    threads = min(torch.get_num_threads(), -(-count // grain))
    if threads <= 1:
        kernel(0, count, *args)
        return
    step = max(grain, -(-count // (4 * threads)))  # four pieces a thread even out the load
    pool = _pool(torch.get_num_threads(), os.getpid())
    pieces = [pool.submit(kernel, lo, min(lo + step, count), *args) for lo in range(0, count, step)]
    for piece in pieces:
        piece.result()
