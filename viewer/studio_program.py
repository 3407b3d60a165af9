"""What the page of the studio wants of the program, whose runs and settings the viewer does not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from splatgen.loop.snapshot import Channel, Cloud, Command


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The names that fields can hold."""

    bases: Sequence[str]  # settings to start from
    priors: Sequence[str]
    scores: Sequence[str]
    preferences: Sequence[str]


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


@dataclass(frozen=True, kw_only=True)
class Work:
    """The run at work, or the last one."""

    state: str  # idle, loading, running, paused, writing, done, stopped or failed
    number: int = 0  # of runs so far
    prompt: str = ""
    message: str = ""  # what went wrong
    channel: Channel = field(default_factory=Channel)
    settings: Mapping[str, float] = field(default_factory=dict)  # that can change in it

    @property
    def busy(self) -> bool:
        """Whether another run would end this one; models are also loaded ahead, without one."""
        return self.number > 0 and self.state in ("loading", "running", "paused", "writing")


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """A run in the history."""

    name: str  # of its folder
    prompt: str
    told: str  # method, prior, seed, steps
    status: str
    rewards: Mapping[str, float]
    finished: bool  # so that it can be seen and had
    goes_on: bool  # it was stopped, and can be continued
    again: bool = True  # its settings can be started from


class Program(Protocol):
    """Called by pages' threads and the pump's, at any time. What fails in `form`, `cloud` and `file` is a
    ValueError or an OSError, in words."""

    @property
    def choices(self) -> Choices: ...

    def work(self) -> Work:
        """As of now; called often."""

    def form(self, base: str) -> Form:
        """The fields as a base has them."""

    def vocabulary(self, prior: str) -> Vocabulary | None:
        """Of a prior that knows only some words."""

    def begin(self, form: Form) -> Refusal | None:
        """Make this run, in place of the one at work."""

    def go_on(self, name: str) -> Refusal | None:
        """Continue a run that was stopped."""

    def send(self, command: Command) -> None:
        """To the run at work."""

    def past(self) -> Sequence[PastRun]:
        """Newest first."""

    def thumbnail(self, name: str) -> bytes | None:
        """A small PNG of a past run."""

    def cloud(self, name: str) -> Cloud:
        """The object of a finished run."""

    def file(self, name: str) -> bytes:
        """Its .ply."""
