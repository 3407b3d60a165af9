"""What a run shows while it goes on, and the channel between its loop and a viewer. NumPy only, no torch.

The loop never waits: it leaves its newest snapshot in a slot, and takes what commands there are. No lock is
shared: the slot is one attribute with one writer, and the queue never blocks.

Shapes: N splats, B views.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Picture = NDArray[np.uint8]  # [h, w, 3]


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Splats as viewers draw them."""

    means: Floats  # [N, 3] world units
    covariances: Floats  # [N, 3, 3]
    rgbs: Floats  # [N, 3] in 0..1, of the degree-0 colour
    opacities: Floats  # [N] in 0..1

    def __len__(self) -> int:
        return len(self.means)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One noise of the last step: what the prior thinks it is, and how it was judged."""

    picture: Picture
    reward: float | None
    weight: float  # of it in the step; 0 for one that was left out
    role: str  # what it was chosen for: "", kept, win or lose


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run at the end of one of its steps."""

    step: int  # done so far
    steps: int
    seconds: float  # since the loop began
    status: str  # running, paused, or as in run.json
    cloud: Cloud
    rows: tuple[Mapping[str, float], ...]  # of metrics.jsonl, since the snapshot before
    cameras: Floats = field(default_factory=lambda: np.zeros((0, 4, 4), np.float32))  # [B, 4, 4] c2w, OpenGL
    fov: float = 50.0  # vertical, degrees, of these cameras
    candidates: tuple[Candidate, ...] = ()
    view: Picture | None = None  # our own rasterizer's, from the camera of the last `look`
    memory_mb: float | None = None
    gpu_memory_mb: float | None = None
    stage: str = ""  # of a run that has several


@dataclass(frozen=True, kw_only=True)
class ViewRequest:
    """A camera that wants our own rasterizer's picture."""

    c2w: Floats  # [4, 4] OpenGL
    fov: float  # vertical, degrees
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a user asks of a running loop."""

    kind: Literal["pause", "continue", "stop", "checkpoint", "save", "set", "look"]
    setting: str = ""  # set: guidance.scale, lr.factor or reward.NAME
    value: float = 0.0
    look: ViewRequest | None = None  # look: from where; None to stop looking


@dataclass(frozen=True, kw_only=True)
class SavedFile:
    """What `save` asked for, for the user to keep."""

    name: str
    content: bytes


@dataclass(kw_only=True)
class Channel:
    """Between one loop and one viewer, which may be in different threads."""

    interval: float = 0.1  # seconds between snapshots, at least
    commands: queue.SimpleQueue[Command] = field(default_factory=queue.SimpleQueue)
    messages: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)  # for the user, in words
    files: queue.SimpleQueue[SavedFile] = field(default_factory=queue.SimpleQueue)  # that `save` asked for
    folder: Path | None = None  # of the run, once it has ended
    asked: bool = False  # the process of the run was asked to stop, by a signal
    _slot: tuple[int, Snapshot | None] = (0, None)
    _taken: int = 0
    _shown: float = 0.0

    def wants(self) -> bool:
        """Whether a snapshot would be looked at: the one before was taken, and some time has passed."""
        return self._taken == self._slot[0] and time.monotonic() - self._shown >= self.interval

    def put(self, snapshot: Snapshot) -> None:
        """Leave a snapshot for whoever looks next; of one that nobody took the rows stay. For the loop."""
        number, before = self._slot
        if before is not None and number != self._taken:  # one taken just now gives its rows twice
            snapshot = replace(snapshot, rows=(*before.rows, *snapshot.rows))
        self._slot = (number + 1, snapshot)
        self._shown = time.monotonic()

    def take(self) -> Snapshot | None:
        """The newest snapshot, unless it was taken before. For the viewer."""
        number, snapshot = self._slot
        if number == self._taken:
            return None
        self._taken = number
        return snapshot

    @property
    def last(self) -> Snapshot | None:
        """The newest snapshot, taken or not."""
        return self._slot[1]

    def send(self, command: Command) -> None:
        """For the viewer; the loop reads it before its next step."""
        self.commands.put(command)
