"""Shared fixtures: the command line in this process, and what needs the embedded weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch loads OpenMP: tests run side by side, and two pools of spinning threads on two cores make
# every step ten times slower. Subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import pytest
import torch

from splatgen.cli import main

# The GPU path: on a real device, or on the pretended one (tests/test_gpu_path.py)
collect_ignore_glob = [] if torch.cuda.is_available() else ["gpu/test_*.py"]

if TYPE_CHECKING:
    from splatgen.worlds.shelf.scenes import Shelf

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


@pytest.fixture(autouse=True, scope="session")
def _quick() -> Iterator[None]:
    """Waiting for the disk thousands of times takes minutes; test_atomic.py sees that it is done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command line in this process: `cli("generate", "a red cube")`."""

    def run(*argv: object) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        text = capsys.readouterr()
        return Outcome(code=code, out=text.out, err=text.err)

    return run


@pytest.fixture
def shelf_of_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """In place of this machine's shelf: what a training or an evaluation finds."""
    import boxes

    from splatgen.worlds.shelf import VARIABLE, scenes

    folder = tmp_path / "boxes"
    folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(boxes.write(folder)))
    scenes.shelf.cache_clear()
    yield scenes.shelf()
    scenes.shelf.cache_clear()


@pytest.fixture
def real_shelf() -> Iterator[Shelf]:
    """The shelf of this machine; tests that ask for it are skipped where there is none."""
    from splatgen.worlds.shelf import PACKED, scenes, shelf_folder

    folder = shelf_folder()
    if folder is None or not (folder / PACKED).is_file():
        pytest.skip("the shelf's models are not on this machine (SPLATGEN_SHELF)")
    scenes.shelf.cache_clear()
    yield scenes.shelf()
    scenes.shelf.cache_clear()
