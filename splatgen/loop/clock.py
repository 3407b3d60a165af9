"""How long the stages of a step took, without waiting for a GPU to finish them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import torch


class StageClock:
    """Marks between stages: the CPU's clock, or events in the GPU's queue, which are read when asked for.

    (The CPU's clock would say when a GPU was told of its work, not when it did it.)
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []
        self.mark()

    def mark(self) -> None:
        """A stage ends here, and the next begins."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def ms(self, names: Sequence[str]) -> dict[str, float]:
        """Milliseconds of the stages by their names; waits for the GPU to be done with the last one."""
        if self._cuda:
            self._events[-1].synchronize()
            lengths = [float(a.elapsed_time(b)) for a, b in pairwise(self._events)]
        else:
            lengths = [1e3 * (b - a) for a, b in pairwise(self._times)]
        return dict(zip(names, lengths, strict=True))
