"""What a session makes: jobs of one run or of several variants, and where each of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from splatgen.config import Config
from splatgen.loop.snapshot import Channel
from splatgen.scene.splats import Splats

State = Literal["idle", "loading", "running", "paused", "writing", "done", "stopped", "failed"]
BUSY = ("loading", "running", "paused", "writing")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that somebody asks for, or several variants of one."""

    config: Config
    out: Path
    command: Sequence[str]
    folder: Path | None = None  # of a run that was stopped and goes on
    load: bool = False  # the models, and make no run
    source: Splats | None = None  # what an edit starts from
    variants: tuple[tuple[str, Config], ...] = ()  # by name; none are a single run of config

    @property
    def runs(self) -> tuple[tuple[str, Config], ...]:
        """Names and settings of what is made."""
        return self.variants or (("", self.config),)


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One of the runs of a job."""

    name: str
    config: Config
    state: State = "loading"
    message: str = ""  # what went wrong
    folder: Path | None = None  # of the run, once it has ended
    channel: Channel = field(default_factory=Channel)


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a session is."""

    state: State
    number: int = 0  # of the job at work, or the last one
    job: Job | None = None
    message: str = ""  # what went wrong
    lanes: tuple[Lane, ...] = ()

    @property
    def busy(self) -> bool:
        return self.state in BUSY

    @property
    def folder(self) -> Path | None:
        """Of the first run, once it has ended."""
        return self.lanes[0].folder if self.lanes else None

    @property
    def channel(self) -> Channel:
        """Of the first run."""
        return self.lanes[0].channel if self.lanes else NOBODY


NOBODY = Channel()  # that no run reads


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A job in the queue, or one that has ended."""

    number: int
    job: Job
    status: Status | None = None  # at its end


def together(lanes: Sequence[Lane]) -> State:
    """The state of a job out of those of its runs."""
    states = {lane.state for lane in lanes}
    order: tuple[State, ...] = ("running", "paused", "writing", "loading", "done", "stopped", "failed")
    return next((state for state in order if state in states), "idle")
