"""The same work on many tasks, in processes of their own or in this one."""

from __future__ import annotations

import functools
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def results(
    work: Callable[[T], R], tasks: Sequence[T], workers: int, seconds: float = math.inf
) -> Iterator[R]:
    """What work makes of each task, as it is finished; with 0 workers here, one after the other.

    No task is started after `seconds`; what was started is finished. Processes are spawned, not forked:
    a fork of a process that uses CUDA fails.
    """
    timely = functools.partial(_timely, work, time.time() + seconds)
    if workers == 0:
        yield from (found[0] for found in map(timely, tasks) if found)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from (found[0] for found in pool.imap_unordered(timely, tasks) if found)


def _timely(work: Callable[[T], R], deadline: float, task: T) -> tuple[R] | None:
    return (work(task),) if time.time() < deadline else None
