"""The page of a run, put together out of its panels."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import viser

from splatgen.loop.snapshot import Channel, Snapshot

from .candidates import Candidates
from .controls import Controls, Save, Settings
from .curves import Curves
from .history import History
from .panels import Panel
from .poses import REACH
from .rendered import Rendered
from .scene import Scene
from .status import Status

WIDTH = 400  # pixels, of the panels

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a page is about, before there is a snapshot."""

    title: str
    runs: bool = True  # and can be steered
    settings: Mapping[str, float] = field(default_factory=dict)  # that can change, with their values
    reach: float = REACH  # of the first view, up from the origin; world units


class Page:
    """Everything one sees of a run; `update` and `tick` are for one thread."""

    def __init__(self, server: viser.ViserServer, channel: Channel, subject: Subject) -> None:
        gui = server.gui
        gui.configure_theme(control_width="large", show_logo=False, show_share_button=False)
        gui.main_panel.dock_right()  # not above the splats
        gui.main_panel.set_width(WIDTH)
        self.channel, self.history = channel, History()
        self.status = Status(gui)
        self.save = Save(gui, channel)
        self.panels: list[Panel] = [self.status]
        if subject.runs:
            self.panels.append(Controls(gui, channel))
        tabs = gui.add_tab_group()
        with tabs.add_tab("View"):
            self.rendered = Rendered(server, channel)
            self.panels += [Scene(server, subject.reach), self.rendered]
        self.panels.append(Curves(gui, tabs.add_tab("Curves"), self.history))
        if subject.runs:
            with tabs.add_tab("Last step"):
                self.panels.append(Candidates(gui, self.history))
        if subject.settings:
            with tabs.add_tab("Settings"):
                Settings(gui, channel, subject.settings)
        self.broken: set[Panel] = set()

    def update(self, snapshot: Snapshot) -> None:
        """Show a snapshot; a panel that fails says so once, and the others go on."""
        self.history.add(snapshot.rows)
        for panel in self.panels:
            try:
                panel.update(snapshot)
            except Exception:  # noqa: BLE001 - whatever it is, the other panels go on
                if panel not in self.broken:
                    _log.warning("a panel of the viewer failed", exc_info=True)
                self.broken.add(panel)

    def tick(self) -> None:
        """What goes on between snapshots: the run's words and files, and questions to it."""
        for message in _all(self.channel.messages):
            self.status.tell(message)
        for file in _all(self.channel.files):
            self.save.deliver(file.name, file.content)
        self.rendered.tick()


def _all(items: queue.SimpleQueue[T]) -> Iterator[T]:
    while True:
        try:
            yield items.get_nowait()
        except queue.Empty:
            return
