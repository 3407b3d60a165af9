"""The same work on many tasks, in processes of their own or in this one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def results(work: Callable[[T], R], tasks: Sequence[T], workers: int) -> Iterator[R]:
    """What work makes of each task, as it is finished; with 0 workers here, one after the other."""
    if workers == 0:
        yield from map(work, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(work, tasks)
