"""The thread that carries snapshots from a run's channel to the page, as fast as somebody reads them."""

from __future__ import annotations

import logging
import threading
import time

from splatgen.loop.snapshot import Channel

from .page import Page
from .serving import Server

INTERVAL = 0.05  # seconds between looks into the channel
SHARE = 0.05  # of this thread's time, at most, that snapshots take

_log = logging.getLogger(__name__)


class Pump:
    """Takes a snapshot when a page has read the one before; while none has, the run makes no more of them."""

    def __init__(self, channel: Channel, page: Page, server: Server) -> None:
        self.channel, self.page, self.server = channel, page, server
        self.mark = -1  # of the newest snapshot, among the messages to the pages
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, name="splatgen-viewer", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Show what is left in the channel, and end."""
        self.over.set()
        self.thread.join(timeout=5.0)
        self._turn(last=True)

    def _run(self) -> None:
        nap = INTERVAL
        while not self.over.wait(nap):
            nap = max(INTERVAL, self._turn() * (1.0 / SHARE - 1.0))

    def _turn(self, *, last: bool = False) -> float:
        """One look; returns the seconds that a snapshot took. Whatever fails is logged."""
        began = time.monotonic()
        try:
            self.page.tick()
            if not (last or self.server.has_reader(self.mark)):
                return 0.0
            snapshot = self.channel.take()
            if snapshot is None:
                return 0.0
            self.page.update(snapshot)
            self.mark = self.server.mark
        except Exception:  # noqa: BLE001 - the run must not notice
            _log.warning("the viewer failed", exc_info=True)
        return time.monotonic() - began
