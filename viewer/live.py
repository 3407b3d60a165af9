"""A viewer: a server, a page and a pump around the channel of one run."""

from __future__ import annotations

import contextlib
import socket
import time
from types import TracebackType

from splatgen.loop.snapshot import Channel

from .access import Access
from .page import Page, Subject
from .pump import Pump
from .serving import Server, serve

LAST = 0.3  # seconds that pages have for the last snapshot


class Viewer:
    """Open from its making to `close`; both, and all in between, leave the run alone."""

    def __init__(self, channel: Channel, subject: Subject, *, host: str, port: int) -> None:
        """Raises OSError when nothing can listen at the host."""
        self.host, self.access = host, Access.to(host)
        self.server: Server = serve(host, port, self.access, subject.title)
        self.page = Page(self.server, channel, subject)
        self.pump = Pump(channel, self.page, self.server)
        self.pump.start()

    @property
    def port(self) -> int:
        return self.server.get_port()

    @property
    def url(self) -> str:
        """The address to open in a browser, with the token if there is one."""
        name = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{name}]' if ':' in name else name}:{self.port}{self.access.path()}"

    def close(self) -> None:
        """Show the last snapshot and hang up."""
        with contextlib.suppress(Exception):
            self.pump.stop()
            self.server.flush()
            if self.server.readers():
                time.sleep(LAST)
        self.server.stop()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
