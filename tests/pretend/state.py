"""What the pretended device knows of itself: its memory, who waited for it, and whether it is still there."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

DEVICE = torch.device("cuda", 0)
META = bool(os.environ.get("PRETEND_META"))
TOTAL = 80 * 2**30  # bytes
ROUND = 512  # bytes, as the caching allocator rounds
LOST = "CUDA error: unspecified launch failure (pretended)"
FULL = "CUDA out of memory. Tried to allocate {} bytes (pretended)."

Waits = Counter[tuple[str, str]]  # by (what, where)


@dataclass(kw_only=True)
class State:
    """Of the one device there is."""

    limit: int = TOTAL
    now: int = 0  # bytes of live storages
    peak: int = 0
    live: dict[int, Any] = field(default_factory=dict)  # storages, by address
    pinned: dict[int, Any] = field(default_factory=dict)  # of the CPU
    waited: Waits = field(default_factory=Counter)
    lost: bool = False
    warns: bool = False  # torch.cuda.set_sync_debug_mode

    def allocate(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is gone; torch.OutOfMemoryError where there is no room."""
        key, size = storage._cdata, -(-storage.nbytes() // ROUND) * ROUND
        if key in self.live:
            return
        if self.now + size > self.limit:
            raise torch.OutOfMemoryError(FULL.format(size))

        def free(_: object) -> None:
            del self.live[key]
            self.now -= size

        self.live[key] = weakref.ref(storage, free)
        self.now += size
        self.peak = max(self.peak, self.now)

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Remember that a tensor of the CPU is in pinned memory."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        self.pinned[key] = weakref.ref(storage, lambda _: self.pinned.pop(key, None))
        return tensor

    def check(self) -> None:
        """Raise what CUDA says when the device is gone."""
        if self.lost:
            raise torch.AcceleratorError(LOST)


STATE = State()
_HERE = threading.local()


class setting:
    """Of this thread. inside: in a call that has to do with the device; quiet: nothing is counted."""

    def __init__(self, name: str, value: bool) -> None:
        self.name, self.value = name, value

    def __enter__(self) -> None:
        self.before = getattr(_HERE, self.name, False)
        setattr(_HERE, self.name, self.value)

    def __exit__(self, *_: object) -> None:
        setattr(_HERE, self.name, self.before)


def is_set(name: str) -> bool:
    return bool(getattr(_HERE, name, False))


def wait(what: str) -> None:
    """Count a wait at the innermost line outside of torch, and at splatgen's where that is another one."""
    STATE.check()
    if is_set("quiet"):
        return
    places: list[str] = []
    frame = sys._getframe(1)
    line = ("", 0)
    while frame.f_back is not None and not any("splatgen/" in place for place in places[-1:]):
        name = frame.f_code.co_filename
        if "/pretend/" not in name and "/torch/" not in name and (not places or "/splatgen/" in name):
            line = line if places else (name, frame.f_lineno)
            places.append(f"{'/'.join(name.split('/')[-3:])}:{frame.f_lineno}")
        frame = frame.f_back
    STATE.waited[what, " < ".join(places)] += 1
    if STATE.warns:
        warnings.warn_explicit("called a synchronizing CUDA operation", UserWarning, *line)


@contextlib.contextmanager
def counted() -> Iterator[Waits]:
    """The waits of a block of code."""
    before, found = STATE.waited.copy(), Waits()
    try:
        yield found
    finally:
        found.update(STATE.waited - before)


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """A block of code for which there are so many bytes, what is on the device already among them."""
    before, STATE.limit = STATE.limit, size
    try:
        yield
    finally:
        STATE.limit = before
