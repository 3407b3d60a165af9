"""Shared fixtures: the command line in this process, and what needs the embedded weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

# Before torch loads OpenMP: tests run side by side, and two pools of spinning threads on two cores make
# every step ten times slower. Subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import pytest

from splatgen.cli import main

# Timing depends on what else the machine does; derandomised runs fail in the same way everywhere.
hypothesis.settings.register_profile("splatgen", deadline=None, derandomize=True)
hypothesis.settings.load_profile("splatgen")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command line left behind."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command line in this process: `cli("generate", "a red cube")`."""

    def run(*argv: object) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        text = capsys.readouterr()
        return Outcome(code=code, out=text.out, err=text.err)

    return run
