"""What the verbs with a viewer share: where it listens, and what the terminal says of it."""

from __future__ import annotations

import contextlib
import getpass
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from splatgen.commands.common import still
from splatgen.commands.common.arguments import Switch
from splatgen.commands.common.errors import USAGE, Failure, one_line
from splatgen.config import Config, Method
from splatgen.config.stages import stages
from splatgen.runs import run_folder, steering
from splatgen.runs.run_folder import Run

if TYPE_CHECKING:
    from splatgen_viewer.live import Viewer
    from splatgen_viewer.page import Subject

    from splatgen.loop.snapshot import Channel


INTERVAL = 0.2  # seconds between snapshots of a run, at least: each costs it a copy of its splats


@dataclass(frozen=True, kw_only=True)
class ViewerAddress:
    """Where a viewer listens."""

    host: Annotated[str, arg(metavar="HOST")] = "127.0.0.1"
    """Of the viewer: this machine alone, unless it is another of its addresses; then the address to open
    holds a token, but goes unencrypted."""
    port: Annotated[int, arg(metavar="N")] = 8080
    """Of the viewer; the next one that is free if it is taken."""
    open: Switch = False
    """Open its page in the browser of this machine."""


@dataclass(frozen=True, kw_only=True)
class ViewerOptions:
    """Whether a run is watched, and where."""

    viewer: Switch = False
    """Show the run live in a browser; --open alone does so, too."""
    viewer_wait: Literal["auto", "yes", "no"] = "auto"
    """Keep the page after the end of the run, until Ctrl-C: auto does if one is open then."""
    place: Annotated[ViewerAddress, arg(name="", prefix_name=False)] = field(default_factory=ViewerAddress)


@contextlib.contextmanager
def watched(options: ViewerOptions, config: Method, folder: Path | None = None) -> Iterator[Channel | None]:
    """The channel of a run while its viewer is open, None without --viewer; folder is a resumed run's."""
    if not options.viewer and not options.place.open:
        yield None
        return
    if not isinstance(config, Config):
        raise Failure(USAGE, "--viewer shows splats, and this is the run of an image: leave it out")
    from splatgen_viewer.page import Subject

    from splatgen.loop.snapshot import Channel

    channel = Channel(interval=INTERVAL)
    subject = Subject(title=config.prompt, settings=settings(config, folder), reach=reach(config))
    with opened(channel, subject, options.place) as viewer:
        try:
            yield channel
        except Exception as error:
            if wanted(viewer, channel, options):
                print(f"splatgen: the run has ended: {one_line(str(error))}", file=sys.stderr)
                stay(channel, config.prompt)
            raise
        if wanted(viewer, channel, options):
            stay(channel, config.prompt)


def wanted(viewer: Viewer, channel: Channel, options: ViewerOptions) -> bool:
    """Whether the page outlives its run; not where there was none, or a signal wants the process to end."""
    if channel.folder is None or channel.asked or options.viewer_wait == "no":
        return False
    return options.viewer_wait == "yes" or viewer.server.readers() > 0


def stay(channel: Channel, prompt: str) -> None:
    """Keep the page of a run that has ended, with its splats to look at and to save, until Ctrl-C."""
    print(
        "splatgen: the page stays until Ctrl-C (--viewer-wait no: it ends with the run)",
        file=sys.stderr,
        flush=True,
    )
    assert channel.folder is not None
    from splatgen.loop.resident_models import collect

    collect()  # the models of the run: whoever waits here needs no GPU
    try:
        last = channel.last
        if last is None:
            raise ValueError("nothing was shown")
        shown = still.of_run(channel.folder, run_folder.slug(prompt), last)
    except (Failure, OSError, ValueError) as error:
        channel.messages.put(f"no splats to save or to render: {error}")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(still.NAP)
    else:
        still.serve(channel, shown)


@contextlib.contextmanager
def opened(channel: Channel, subject: Subject, place: ViewerAddress) -> Iterator[Viewer]:
    """A viewer at a place, which the terminal is told; raises Failure when it can't listen there."""
    from splatgen_viewer.live import Viewer

    with served(lambda: Viewer(channel, subject, host=place.host, port=place.port), place) as viewer:
        yield viewer


@contextlib.contextmanager
def served(make: Callable[[], Viewer], place: ViewerAddress, what: str = "viewer") -> Iterator[Viewer]:
    """What make starts at a place, which the terminal is told; raises Failure when it can't listen there."""
    if not 1 <= place.port <= 65535:
        raise Failure(USAGE, f"--port {place.port}: give 1 to 65535")
    try:
        viewer = make()
    except OSError as error:
        reason = error.strerror or error
        raise Failure(USAGE, f"no {what} at {place.host}, port {place.port}: {reason}") from error
    with viewer:
        for line in told(viewer, place, os.environ):
            print(f"splatgen: {line}", file=sys.stderr, flush=True)
        if place.open and not browse(viewer.url, os.environ):
            print("splatgen: no browser could be started here: open the address yourself", file=sys.stderr)
        yield viewer


def browse(url: str, environment: Mapping[str, str]) -> bool:
    """Open a page in a browser with a window; one that draws in the terminal would take it from the run."""
    import webbrowser

    seen = any(environment.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"))
    return (seen or sys.platform in ("win32", "darwin")) and webbrowser.open(url)


def told(viewer: Viewer, place: ViewerAddress, environment: Mapping[str, str]) -> list[str]:
    """What the terminal says of a viewer: its address, and how to reach it."""
    lines = [f"port {place.port} is taken: {viewer.port}"] if viewer.port != place.port else []
    lines.append(f"viewer: {viewer.url}")
    if viewer.access.token:
        lines.append(
            "warning: whoever has this address sees and steers the run, and it goes over the network "
            f"unencrypted; without --host, ssh -N -L {viewer.port}:127.0.0.1:{viewer.port} is the safe way"
        )
    elif environment.get("SSH_CONNECTION"):
        lines.append(f"from your own machine, first: {tunnel(viewer.port, environment)}")
    return lines


def tunnel(port: int, environment: Mapping[str, str]) -> str:
    """The command that brings a port of this machine to the one that an SSH session comes from."""
    words = environment["SSH_CONNECTION"].split()  # client, its port, server, its port
    there = words[2] if len(words) == 4 else "HOST"
    other = ["-p", words[3]] if len(words) == 4 and words[3] != "22" else []
    return shlex.join(["ssh", "-N", "-L", f"{port}:127.0.0.1:{port}", *other, f"{getpass.getuser()}@{there}"])


def settings(config: Config, folder: Path | None) -> dict[str, float]:
    """The settings that can change in a run, as they are now, in the stage that it is in."""
    done = 0 if folder is None else steps_done(folder)
    stage = next((s for s in stages(config) if done < s.end), stages(config)[-1])
    values = {"guidance.scale": stage.config.guidance.scale, "lr.factor": 1.0}
    values |= {
        f"reward.{name}": weight for s in stages(config) for name, weight in s.config.rewards().items()
    }
    values |= {f"reward.{name}": weight for name, weight in stage.config.rewards().items()}
    if folder is not None:
        changes = [c for c in steering.read(folder / steering.FILE) if c.step >= stage.first]
        values |= {c.setting: c.value for c in changes if c.setting in values}
    return values


def steps_done(folder: Path) -> int:
    """Up to which step a run has checkpoints."""
    found = [path.name.removeprefix("step-") for path in Run(folder=folder).checkpoints.glob("step-*")]
    return max((int(name) for name in found if name.isdigit()), default=0)


def reach(config: Config) -> float:
    """How far up from the object's middle the run's cameras see, about; world units."""
    v = stages(config)[0].config.views
    across = 1.0 if v.relative else math.tan(math.radians(sum(v.fov) / 4.0))
    return across * sum(v.distance) / 2.0
