"""The page of the studio: a prompt, the run that it makes, and the runs before it. It outlives them all."""

from __future__ import annotations

import html
import logging
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import viser

from splatgen.loop.snapshot import Channel, Command, Snapshot

from .access import Access
from .candidates import Candidates
from .controls import Controls, Save, Settings
from .curves import Curves
from .history import History
from .live import Viewer
from .page import Page
from .poses import REACH
from .pump import Pump
from .rendered import Rendered
from .scene import Scene
from .serving import serve
from .status import Status
from .studio_past_runs import Exhibit, PastRuns
from .studio_program import Program, Work
from .studio_request import Request, alert, box

PAST_SECONDS = 2.0  # between looks at the folder of runs
WORDS = {
    "idle": "type a prompt and press Generate",
    "loading": "loading the models, or reading the prompt",
    "running": "running",
    "paused": "paused",
    "writing": "writing the results",
    "done": "done",
    "stopped": "stopped: Continue, among the past runs, goes on with it",
    "failed": "failed",
}

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(kw_only=True)
class Relay(Channel):
    """Stands for the channel of whichever run the page shows."""

    program: Program
    current: Channel = field(default_factory=Channel)

    def take(self) -> Snapshot | None:
        return self.current.take()

    def send(self, command: Command) -> None:
        self.program.send(command)


class StudioPage:
    """Everything one sees; `update` and `tick` are for one thread, the pump's."""

    def __init__(self, server: viser.ViserServer, program: Program) -> None:
        gui = server.gui
        gui.configure_theme(control_width="large", show_logo=False, show_share_button=False)
        gui.main_panel.dock_right()  # beside the scene, which two objects fill
        self.gui, self.program = gui, program
        self.relay = Relay(program=program)
        self.request = Request(gui, program)
        self.state = gui.add_html(box(WORDS["idle"]))
        self.status = Status(gui)
        tabs = gui.add_tab_group()
        with tabs.add_tab("Run"):
            self.controls = Controls(gui, self.relay)
            self.save = Save(gui, self.relay) if hasattr(self.relay, "files") else None
            self.rendered = Rendered(server, self.relay)
            self.scene = Scene(server, REACH)
        with tabs.add_tab("Past"):
            self.exhibit = Exhibit(server)
            self.past_runs = PastRuns(gui, program, self.request, self.exhibit)
        self.curves_tab, self.candidates_tab = tabs.add_tab("Curves"), tabs.add_tab("Last step")
        self.settings_tab = tabs.add_tab("Live settings")
        self.work = Work(state="")  # that is shown
        self.looked = -PAST_SECONDS
        self._parts: list[viser.GuiFolderHandle] = []
        self._renew(program.work())

    def tick(self) -> None:
        """What goes on between snapshots."""
        work = self.program.work()
        if work.number != self.work.number:
            self._renew(work)
        if (work.state, work.message) != (self.work.state, self.work.message):
            self._show(work)
        self._carry()
        now = time.monotonic()
        if now - self.looked >= PAST_SECONDS or self.past_runs.stale:
            self.looked = now
            self.past_runs.update()
        self._reveal()
        self.rendered.tick()

    def _carry(self) -> None:
        """The run's words and files, to the pages."""
        for message in waiting(self.relay.current.messages):
            self.status.tell(message)
        if self.save is not None:
            for file in waiting(getattr(self.relay.current, "files")):  # noqa: B009
                self.save.deliver(file.name, file.content)

    def update(self, snapshot: Snapshot) -> None:
        """Show a snapshot of the run at work; a panel that fails leaves the others alone."""
        self.history.add(snapshot.rows)
        panels = (self.status, self.controls, self.scene, self.rendered, self.curves, self.candidates)
        for panel in panels:
            try:
                panel.update(snapshot)
            except Exception:  # noqa: BLE001 - whatever it is, the other panels go on
                _log.warning("a panel of the studio failed", exc_info=True)
        self._reveal()

    def _renew(self, work: Work) -> None:
        """Panels for another run."""
        for part in self._parts:
            part.remove()
        self._parts = []
        self.history = History()
        with self._part(self.curves_tab) as place:
            self.curves = Curves(self.gui, cast("viser.GuiTabHandle", place), self.history)
        with self._part(self.candidates_tab):
            self.candidates = Candidates(self.gui, self.history)
        with self._part(self.settings_tab):
            if work.settings:
                Settings(self.gui, self.relay, work.settings)
        self.status.messages.clear()
        self.status.said.visible = False
        self.past_runs.choose(())
        self.relay.current = work.channel
        self._show(work)

    def _part(self, tab: viser.GuiTabHandle) -> viser.GuiFolderHandle:
        with tab:
            self._parts.append(self.gui.add_folder(None))
        return self._parts[-1]

    def _show(self, work: Work) -> None:
        """Say where a run is."""
        self.work, self.looked = work, -PAST_SECONDS  # the past runs may have something new
        self.request.show(work)
        about = f"<b>{html.escape(work.prompt)}</b> · " if work.prompt else ""
        failed = alert(work.message) if work.message else ""
        self.state.content = box(about + WORDS[work.state]) + failed
        buttons: list[Any] = [self.controls.pause, self.controls.stop, self.controls.checkpoint]
        buttons += [] if self.save is None else [self.save.button]
        for button in buttons:
            button.disabled = work.state not in ("running", "paused")

    def _reveal(self) -> None:
        """The live object, unless past ones are in its place."""
        live, wanted = self.scene.splats, not self.exhibit.names
        if live is not None and live.visible != wanted:
            live.visible = wanted


def waiting(items: queue.SimpleQueue[T]) -> Iterator[T]:
    """What is in a queue by now."""
    while True:
        try:
            yield items.get_nowait()
        except queue.Empty:
            return


class Studio(Viewer):
    """A viewer whose page is the studio's; open from its making to `close`."""

    def __init__(self, program: Program, *, host: str, port: int) -> None:
        """Raises OSError when nothing can listen at the host."""
        self.host, self.access = host, Access.to(host)
        self.server = serve(host, port, self.access, "splatgen studio")
        page = StudioPage(self.server, program)
        self.pump = Pump(page.relay, cast("Page", page), self.server)
        self.pump.start()
