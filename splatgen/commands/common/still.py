"""Splats that no longer change, for pages that look at them: what a page asks for, until Ctrl-C."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splatgen.formats.splat_file import SplatFile
    from splatgen.loop.snapshot import Channel, Command, Snapshot
    from splatgen.scene.splats import Splats

NAP = 0.5  # seconds; where a blocked thread hears no Ctrl-C, it does after these


@dataclass(frozen=True, kw_only=True)
class Still:
    """What is shown."""

    splats: Splats  # before the cameras
    file: SplatFile  # what is saved, where it came from
    name: str  # of the file for the user, without suffix
    snapshot: Snapshot  # without rows: the page has them, once it has taken the first


def of_run(folder: Path, name: str, snapshot: Snapshot) -> Still:
    """What a run that has ended left; raises what reading it does."""
    from splatgen import formats
    from splatgen.commands.common.inputs import splat_file
    from splatgen.loop import kept
    from splatgen.runs.run_folder import Run

    file = formats.read(splat_file(folder))
    splats = kept.before_the_cameras(Run(folder=folder), file.splats())
    return Still(splats=splats, file=file, name=name, snapshot=dataclasses.replace(snapshot, rows=()))


def serve(channel: Channel, still: Still) -> None:
    """Answer pages until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            with contextlib.suppress(queue.Empty):
                answer(channel.commands.get(timeout=NAP), channel, still)


def answer(command: Command, channel: Channel, still: Still) -> None:
    """Do what a page asks for."""
    from splatgen.loop.object_snapshots import picture, ply
    from splatgen.loop.snapshot import SavedFile

    if command.kind == "look" and command.look is not None:
        seen = picture(still.splats, command.look, antialiased=still.file.antialiased)
        channel.put(dataclasses.replace(still.snapshot, view=seen))
    elif command.kind == "save":
        channel.files.put(SavedFile(name=f"{still.name}.ply", content=ply(still.file)))
    elif command.kind != "look":
        channel.messages.put(f"the run has ended, as {still.snapshot.status}: nothing changes any more")
