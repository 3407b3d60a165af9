"""What the page of the studio wants of the program, whose runs and settings the viewer does not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from splatgen.loop.snapshot import Channel, Cloud, Command

BUSY = ("loading", "running", "paused", "writing")


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The names that fields can hold."""

    bases: Sequence[str]  # settings to start from
    priors: Sequence[str]
    scores: Sequence[str]
    preferences: Sequence[str]
    methods: Sequence[str] = ()  # that variants can be of


@dataclass(frozen=True, kw_only=True)
class Form:
    """What the fields hold."""

    base: str  # one of the bases, or the name of a past run
    prompt: str
    prior: str
    score: str
    preference: str
    steps: int
    seed: int
    negative: str = ""
    scale: float = 7.5  # of the guidance
    rewards: str = "auto"  # names with weights, apart by spaces
    held_out: str = ""
    seeds: int = 1  # variants, counted up from the seed
    methods: str = ""  # variants, by their names
    opened: str = ""  # a file that was opened, to go on from
    source: str = ""  # what it shows, to be edited
    more: str = ""  # other settings, as in a config file


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a run was not begun."""

    message: str
    nearest: str = ""  # a prompt that would do


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a prior that knows only some words can be told."""

    lines: Mapping[str, Sequence[str]]  # words by kind
    examples: Sequence[str]  # prompts
    picture: str = ""  # of all words, one data: address, in squares
    columns: int = 1
    places: Mapping[str, int] = field(default_factory=dict)  # of each word in it


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One of the runs at work: a job of several variants has several."""

    name: str  # what it is among the others
    state: str  # loading, running, paused, writing, done, stopped or failed
    channel: Channel
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The job at work, or the last one."""

    state: str  # idle, or as a lane's
    number: int = 0
    prompt: str = ""
    message: str = ""  # what went wrong
    advice: str = ""  # what is known of these settings
    where: str = ""  # the folder of the run, once it has ended
    lanes: Sequence[Lane] = ()
    settings: Mapping[str, float] = field(default_factory=dict)  # that can change in it

    @property
    def busy(self) -> bool:
        return self.number > 0 and self.state in BUSY


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """A job that waits or has ended."""

    number: int
    prompt: str
    told: str  # how it is made
    state: str  # waiting, done, stopped or failed
    message: str = ""
    runs: Sequence[str] = ()  # names of past runs that it left


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """A run in the history."""

    name: str  # of its folder
    prompt: str
    told: str  # method, prior, seed, steps
    status: str
    rewards: Mapping[str, float]  # reward/NAME and holdout/NAME
    finished: bool  # so that it can be seen and had
    goes_on: bool  # it was stopped, and can be continued
    again: bool = True  # its settings can be started from
    when: str = ""
    starred: bool = False
    flat: bool = False  # a picture, not an object
    guided: bool = False  # by its rewards, which say less of it then
    measurable: bool = False  # the exact object is known
    truth: str = ""  # how near to it this one is, once it was measured


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A file that somebody brought."""

    name: str  # that fields know it by
    told: str  # what is in it
    form: Form | None = None  # settings, where those were in it
    cloud: Cloud | None = None  # splats, where those were in it


class Program(Protocol):
    """Called by pages' threads and the pump's, at any time; what fails in words is ValueError or OSError."""

    @property
    def choices(self) -> Choices: ...

    def work(self) -> Work:
        """As of now; called often."""

    def queue(self) -> Sequence[QueuedJob]:
        """Jobs that wait, in order, and then those that ended, the last first."""

    def form(self, base: str) -> Form:
        """The fields as a base has them."""

    def vocabulary(self, prior: str) -> Vocabulary | None:
        """Of a prior that knows only some words."""

    def advice(self, form: Form) -> str:
        """What is known against these settings; empty for nothing."""

    def begin(self, form: Form) -> Refusal | None:
        """Put this job at the end of the queue; the same one twice in a moment is one."""

    def go_on(self, name: str) -> Refusal | None:
        """Continue a run that was stopped."""

    def cancel(self, number: int) -> None:
        """Take a job that waits out of the queue."""

    def move(self, number: int, by: int) -> None:
        """Move a job that waits by so many places."""

    def send(self, command: Command, lane: int | None = None) -> None:
        """To the job at work, or one of its runs."""

    def past(self) -> Sequence[PastRun]:
        """Newest first."""

    def thumbnail(self, name: str) -> bytes | None:
        """A small PNG of a past run."""

    def picture(self, name: str) -> bytes:
        """The PNG that a run of an image made."""

    def cloud(self, name: str) -> Cloud:
        """The object of a finished run."""

    def file(self, name: str, suffix: str) -> tuple[str, bytes]:
        """A past run's result under a suffix, and what to call it."""

    def star(self, name: str) -> None:
        """Mark a past run, or take its mark away."""

    def measure(self, name: str) -> None:
        """Compare a past run with the exact object; its truth says what came of it."""

    def delete(self, name: str) -> None:
        """Put a past run away; it can be brought back until the studio ends."""

    def undo(self) -> str:
        """Bring the run back that was put away last; its name, or nothing."""

    def differences(self, one: str, other: str) -> Sequence[tuple[str, str, str]]:
        """Settings of two past runs that are not the same: name, and what each has."""

    def open(self, name: str, content: bytes) -> Opened:
        """What is in a file that somebody brought."""
