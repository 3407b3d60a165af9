"""Batches of later steps, made by other processes while a step is computed.

A GPU takes batches faster than one process renders them. Every batch is a function of its step, so who makes
it and when changes nothing.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")

AHEAD = 4  # batches a process may be ahead
END = 2**31  # no training comes so far


class _Steps(Dataset[T]):
    """Batches by step."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> T:
        return self.make(step)


def prefetched(make: Callable[[int], T], workers: int) -> Callable[[int], T]:
    """`make` itself where there are no workers."""
    return Prefetched(make, workers) if workers else make


class Prefetched:
    """Calls `make` in `workers` processes, in the order of the steps; any other step begins a new order.

    make must be picklable and return tensors, or a named tuple of them: with CUDA in pinned memory.
    """

    def __init__(self, make: Callable[[int], T], workers: int) -> None:
        self.make, self.workers = make, workers
        self._next, self._batches = -1, iter(())

    def __call__(self, step: int) -> Any:
        if step != self._next:
            self._batches = iter(
                DataLoader(
                    _Steps(self.make),
                    sampler=range(step, END),
                    batch_size=None,
                    num_workers=self.workers,
                    prefetch_factor=AHEAD,
                    pin_memory=torch.cuda.is_available(),
                    worker_init_fn=_until_the_end,
                    multiprocessing_context="forkserver",  # a process that has threads must not be forked
                )
            )
        self._next = step + 1
        return next(self._batches)


def _until_the_end(worker: int) -> None:
    """Ctrl-C reaches workers, too, and must not take them from a training that still has to save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
