"""The page of the studio: a prompt, the jobs that come of it, and the runs before. It outlives them all."""

from __future__ import annotations

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
from .deeds import Deeds, Event
from .history import History
from .live import Viewer
from .page import WIDTH, Page
from .poses import REACH
from .pump import Pump
from .rendered import Rendered
from .scene import Scene
from .serving import Server, serve
from .studio_grid import Grid
from .studio_past_runs import Exhibit, PastRuns
from .studio_program import BUSY, Program, Refusal, Work
from .studio_queue import Queue, best, worst
from .studio_request import Request, attempt
from .studio_status import StudioStatus

PAST_SECONDS = 2.0  # between looks at the folder of runs

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(kw_only=True)
class Relay(Channel):
    """Stands for the channel of whichever run the panels show."""

    program: Program
    front: int = 0  # among the runs at work
    current: Channel = field(default_factory=Channel)

    def take(self) -> Snapshot | None:
        return self.current.take()

    def send(self, command: Command) -> None:
        to_one = command.kind in ("look", "save")
        self.program.send(command, self.front if to_one else None)


class StudioPage:
    """Everything one sees; `update` and `tick` are for one thread, the pump's."""

    def __init__(self, server: Server, program: Program) -> None:
        gui = server.gui
        gui.configure_theme(control_width="large", show_logo=False, show_share_button=False)
        gui.main_panel.dock_right()  # beside the scene, which several objects fill
        gui.main_panel.set_width(WIDTH)
        self.server, self.gui, self.program = server, gui, program
        self.relay = Relay(program=program)
        self.deeds = Deeds(gui)
        self.status = StudioStatus(gui)
        self.request = Request(gui, program, self.deeds)
        self.queue = Queue(gui, program, self.deeds)
        self.grid = Grid(server)
        tabs = gui.add_tab_group()
        with tabs.add_tab("Run"):
            self.controls = Controls(gui, self.relay)
            self.save = Save(gui, self.relay)
            self.rendered = Rendered(server, self.relay)
            self.scene = Scene(server, REACH)
        with tabs.add_tab("Past"):
            self.exhibit = Exhibit(server)
            self.past_runs = PastRuns(gui, program, self.request, self.exhibit, self.deeds)
        self.curves_tab, self.candidates_tab = tabs.add_tab("Curves"), tabs.add_tab("Last step")
        self.settings_tab = tabs.add_tab("Live settings")
        self.work = Work(state="")  # that is shown
        self.looked = -PAST_SECONDS
        self.mark = -1  # of the newest message of the grid
        self.wanted_front: int | None = None  # by a page
        self._parts: list[viser.GuiFolderHandle] = []
        self._listen(gui)
        self._renew(program.work())

    def _listen(self, gui: viser.GuiApi) -> None:
        self.deeds.add("front", lambda of, _: setattr(self, "wanted_front", int(of)))
        self.deeds.add("only", lambda of, _: self._only(int(of)))
        self.deeds.add("worst", lambda *_: self._worst())
        self.deeds.add("best", lambda *_: self._best())
        self.request.file.on_upload(self._open)
        away = gui.add_command("Back to the live run", hotkey="escape")
        away.on_trigger(lambda _: self.past_runs.choose(()))

    def _open(self, event: Event) -> None:
        """A file that somebody brought: shown, and ready to go on from."""
        brought = self.request.file.value
        opened = attempt(self.request.tell, lambda: self.program.open(brought.name, brought.content))
        if opened is None:
            return
        self.request.hold(opened)
        if opened.cloud is not None:
            self.past_runs.bring(opened.name, brought.name, opened.cloud)

    def _only(self, kept: int) -> None:
        for n, lane in enumerate(self.work.lanes):
            if n != kept and lane.state in BUSY:
                self.program.send(Command(kind="stop"), n)

    def _worst(self) -> None:
        found = worst(self.grid.scores(), [lane.state in BUSY for lane in self.work.lanes])
        if found is None:
            self.request.tell(Refusal(message="no two have a score yet: stop one by its own button"))
        else:
            self.program.send(Command(kind="stop"), found)

    def _best(self) -> None:
        found = best(self.grid.scores(), [lane.state in BUSY for lane in self.work.lanes])
        if found is None:
            self.request.tell(Refusal(message="no two have a score yet: take Only this of the one you like"))
        else:
            self._only(found)

    def tick(self) -> None:
        """What goes on between snapshots."""
        work = self.program.work()
        if work.number != self.work.number:
            self._renew(work)
        if self._told(work) != self._told(self.work):
            self._show(work)
        self._turn_to()
        self._take_grid()
        self._carry()
        now = time.monotonic()
        if now - self.looked >= PAST_SECONDS or self.past_runs.changed:
            self.looked = now
            self.past_runs.update()
        self.queue.update(work, self.grid.scores(), self.grid.steps)
        self._reveal()
        self.rendered.tick()

    @staticmethod
    def _told(work: Work) -> object:
        return work.state, work.message, work.where, [lane.state for lane in work.lanes]

    def _take_grid(self) -> None:
        """Variants in the scene; the one in front also in the panels."""
        if len(self.grid.lanes) < 2 or not self.server.has_reader(self.mark):
            return
        fresh = self.grid.take()
        newest = self.grid.newest[self.relay.front]
        if self.relay.front in fresh and newest is not None:
            self._panels(newest)
        if fresh:
            self.mark = self.server.mark

    def _turn_to(self) -> None:
        """The panels to another of the runs at work."""
        wanted, self.wanted_front = self.wanted_front, None
        if wanted is None or not 0 <= wanted < len(self.work.lanes) or wanted == self.relay.front:
            return
        self.relay.front = wanted
        self._fill_panels(self.work)
        self.history.add(self.grid.histories[wanted].rows())
        newest = self.grid.newest[wanted]
        if newest is not None:
            self._panels(newest)

    def _carry(self) -> None:
        """The runs' words and files, to the pages."""
        for lane in self.work.lanes:
            for message in waiting(lane.channel.messages):
                if lane.channel.folder is None:  # how it ended, and where, is in the line above
                    self.status.tell(f"{lane.name}: {message}" if lane.name else message)
            for file in waiting(lane.channel.files):
                self.save.deliver(file.name, file.content)

    def update(self, snapshot: Snapshot) -> None:
        """Show a snapshot of the run at work."""
        self.history.add(snapshot.rows)
        try:
            self.scene.update(snapshot)
        except Exception:  # noqa: BLE001 - whatever it is, the panels go on
            _log.warning("the scene of the studio failed", exc_info=True)
        self._panels(snapshot, known=True)
        self._reveal()

    def _panels(self, snapshot: Snapshot, *, known: bool = False) -> None:
        """Numbers of a run; a panel that fails leaves the others alone."""
        if not known:
            self.history.add(snapshot.rows)
        for panel in (self.status, self.controls, self.rendered, self.curves, self.candidates):
            try:
                panel.update(snapshot)
            except Exception:  # noqa: BLE001 - whatever it is, the other panels go on
                _log.warning("a panel of the studio failed", exc_info=True)

    def _renew(self, work: Work) -> None:
        """Panels for another job."""
        self.relay.front = 0
        several = len(work.lanes) > 1
        self.grid.begin(tuple(work.lanes) if several else ())
        self.relay.current = work.lanes[0].channel if len(work.lanes) == 1 else Channel()
        if several and self.scene.splats is not None:
            self.scene.splats.visible = False
        self._fill_panels(work)
        self.status.begin(work)
        if self.request.at_once:  # one out of the queue disturbs nobody who looks at past ones
            self.request.at_once = False
            self.past_runs.choose(())
        self._show(work)

    def _fill_panels(self, work: Work) -> None:
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

    def _part(self, tab: viser.GuiTabHandle) -> viser.GuiFolderHandle:
        with tab:
            self._parts.append(self.gui.add_folder(None))
        return self._parts[-1]

    def _show(self, work: Work) -> None:
        """Say where a job is."""
        self.work, self.looked = work, -PAST_SECONDS  # the past runs may have something new
        self.request.show(work)
        self.status.show(work)
        buttons: list[Any] = [self.controls.pause, self.controls.stop, self.controls.checkpoint]
        for button in (*buttons, self.save.button):
            button.disabled = work.state not in ("running", "paused")

    def _reveal(self) -> None:
        """The live objects, unless past ones are in their place."""
        live, wanted = self.scene.splats, not self.exhibit.names
        alone = wanted and len(self.work.lanes) < 2
        if live is not None and live.visible != alone:
            live.visible = alone
        self.grid.reveal(wanted)


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
        self.studio = StudioPage(self.server, program)
        self.pump = Pump(self.studio.relay, cast("Page", self.studio), self.server)
        self.pump.start()
