"""`splatgen view`: a finished run or a splat file in the browser."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from splatgen.commands.common import still
from splatgen.commands.common.arguments import parse
from splatgen.commands.common.checks import resolve_device
from splatgen.commands.common.inputs import framed, splat_file
from splatgen.commands.common.viewer import ViewerAddress, opened
from splatgen.runs import run_folder
from splatgen.runs.metrics import read_metrics

if TYPE_CHECKING:
    from splatgen.formats.splat_file import SplatFile
    from splatgen.loop.snapshot import Channel, Snapshot
    from splatgen.scene.splats import Splats


@dataclass(frozen=True, kw_only=True)
class View:
    """Show a finished run, or a splat file, in a browser until Ctrl-C."""

    input: Annotated[Path, Positional, arg(metavar="RUN_OR_FILE")]
    """A run folder or a splat file."""
    place: Annotated[ViewerAddress, arg(name="", prefix_name=False)] = field(default_factory=ViewerAddress)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of splats beside themselves."""

    title: str
    status: str = ""
    step: int = 0
    rows: tuple[dict[str, Any], ...] = ()


def record(given: Path) -> Record:
    """Of a run: its prompt, how it ended, its numbers; of a file: its name. Raises ValueError and OSError."""
    if not given.is_dir():
        return Record(title=given.name)
    run = run_folder.open_run(given)
    about = run_folder.read(run)
    rows = tuple(read_metrics(run.metrics)) if run.metrics.is_file() else ()
    return Record(
        title=str(about.get("prompt", given.name)),
        status=str(about.get("status", "")),
        step=int(about.get("steps") or 0),
        rows=rows,
    )


def main(argv: Sequence[str]) -> int:
    options = parse(View, "view", argv)
    source, known = splat_file(options.input), record(options.input)
    from splatgen import formats
    from splatgen.loop.object_snapshots import cloud
    from splatgen.loop.snapshot import Channel, Snapshot

    file = formats.read(source)
    splats = framed(file, options.input, "auto").to(resolve_device("auto").device)
    if file.antialiased:
        print(
            f"splatgen: {source} is antialiased (mip): the page draws its small splats thicker than "
            "`splatgen render`",
            file=sys.stderr,
        )
    snapshot = Snapshot(
        step=known.step,
        steps=known.step,
        seconds=0.0,
        status=known.status,
        cloud=cloud(splats),
        rows=known.rows,
    )
    channel = Channel()
    channel.put(snapshot)
    show(channel, splats, snapshot, known.title, options.place, file)
    return 0


def show(
    channel: Channel, splats: Splats, snapshot: Snapshot, title: str, place: ViewerAddress, file: SplatFile
) -> None:
    """A viewer of splats that stay as they are, until Ctrl-C; file is what is saved, where it came from."""
    from splatgen_viewer.page import Subject
    from splatgen_viewer.poses import reach_of

    subject = Subject(title=title, runs=False, reach=reach_of(snapshot.cloud.means))
    bare = dataclasses.replace(snapshot, rows=())
    name = run_folder.slug(title.removesuffix(Path(title).suffix) or title)
    with opened(channel, subject, place):
        still.serve(channel, still.Still(splats=splats, file=file, name=name, snapshot=bare))
