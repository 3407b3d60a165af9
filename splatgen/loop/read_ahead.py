"""The files of the next stage's models, read by the system while the last steps of the present one run.

Loading the models then finds them in memory. Only the files are read: what loads networks sets torch's
default type, and more of the whole process, for a while, and a step at work would see it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path

from splatgen.config import Config
from splatgen.config.stages import Stage, at
from splatgen.models import weights
from splatgen.priors import PRIORS
from splatgen.rewards import JUDGES
from splatgen.scene.parameters import Scene

AHEAD = 20  # last steps of a stage, in which files are read
PIECE = 2**24  # bytes
SHARE = 0.5  # of the memory that is free: files that take more would push each other out

_log = logging.getLogger(__name__)


class ReadAhead:
    """Reads, at the end of each stage, the files that the next one brings; once, in a thread of its own."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.told = 0  # number of the stage whose end was looked at

    def look(self, course: tuple[Stage, ...], scene: Scene) -> None:
        """Begin when it is time; does nothing at any other."""
        stage = at(course, scene.begin)
        if stage is course[-1] or self.told == stage.number or scene.step < stage.end - AHEAD:
            return
        self.told = stage.number
        files = coming(stage.config, course[stage.number].config)
        room = available()
        if files and room is not None and sum(path.stat().st_size for path in files) <= SHARE * room:
            self.thread = threading.Thread(target=read_through, args=(files,), name="read-ahead", daemon=True)
            self.thread.start()


def coming(before: Config, after: Config) -> list[Path]:
    """The files of the published models that a stage takes and the one before does not."""
    found: list[Path] = []
    try:
        o = after.prior_options
        if (after.prior, o) != (before.prior, before.prior_options) and not PRIORS[after.prior].embedded:
            found += _files(after.prior, after.weights, o.model, o.revision)
        here = {*before.rewards(), *before.holdout_reward}
        for name in (*after.rewards(), *after.holdout_reward):
            if name not in here and not JUDGES[name].embedded:
                found += _files(name, after.weights, None, None)
    except (weights.WeightsError, OSError) as error:  # loading them will say so, and better
        _log.info("nothing is read ahead: %s", error)
        return []
    return found


def _files(name: str, folder: str | None, model: str | None, revision: str | None) -> list[Path]:
    if model is None:
        here = weights.inventory(name, folder)
        return [] if here is None else list(here.files)
    found: list[Path] = []
    for place in weights.given(model, revision).folders.values():
        found += [place] if place.is_file() else sorted(place.rglob("*.safetensors"))
    return found


def read_through(files: Iterable[Path]) -> None:
    """Read files to their ends and keep nothing of them."""
    piece = bytearray(PIECE)
    for path in files:
        try:
            with path.open("rb", buffering=0) as file:
                while file.readinto(piece):
                    pass
        except OSError as error:
            _log.info("%s was not read ahead: %s", path, error)
            return


def available() -> int | None:
    """Bytes of memory that are free, or would be for the asking; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None
