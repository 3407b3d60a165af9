"""viser's server behind our access rules: who is let in, on which port, and who has read what."""

from __future__ import annotations

import contextlib
import errno
import http
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import rich
import viser
import websockets.asyncio.server
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from .access import Access, Answer
from .dressing import dressed
from .reconnection import Reconnection

PORTS = 100  # tried, from the one that was asked for
_log = logging.getLogger(__name__)


class Server(viser.ViserServer):
    """viser's server, without the tunnel to the outside that its pages can ask for."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        """Refuse: a run is never shared through a third party's server."""
        _log.warning("a page asked to share this viewer through another server: refused")
        return None

    def disconnect_share_url(self) -> None:
        """There is nothing to disconnect."""

    @property
    def mark(self) -> int:
        """The number of the newest message to all pages."""
        return self._websock_server.get_message_buffer().message_counter - 1

    def has_reader(self, mark: int) -> bool:
        """Whether a page has taken all messages up to a mark: one that is slow takes them later.

        viser keeps one message of a kind and object, so that a page that reads nothing costs what one update
        costs, and is cut off when it answers no ping for 20 seconds.
        """
        cursors = self._websock_server.get_message_buffer().generator_cursors
        return any(cursor >= mark for cursor in list(cursors.values()))

    def readers(self) -> int:
        """How many pages are connected."""
        return len(self._websock_server.get_message_buffer().generator_cursors)


def serve(host: str, port: int, access: Access, title: str) -> Server:
    """A server that listens at a host, on a port or the next that is free. Raises OSError for a bad host."""
    rich.reconfigure(quiet=True)  # viser prints to stdout, where results go
    free, whole = free_port(host, port), threading.Event()
    with _guarded(access, title, whole) as guarded:
        server = Server(host=host, port=free, label=title, verbose=False)
    whole.set()
    if not guarded:
        server.stop()
        raise RuntimeError("this viser starts its web server unguarded: install viser>=1.1,<1.2")
    return server


def free_port(host: str, port: int) -> int:
    """The first port from this one on that nobody listens on; raises OSError when there is none.

    viser looks for itself, but waits for ever when a host can't be listened at for another reason.
    """
    taken: OSError | None = None
    for candidate in range(port, min(port + PORTS, 65536)):
        try:
            _try(host, candidate)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            taken = error
        else:
            return candidate
    raise taken or OSError(errno.EADDRNOTAVAIL, f"{port} is no port: give 1 to 65535")


def _try(host: str, port: int) -> None:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            trial.bind(address)
            trial.listen()


def _once(whole: threading.Event, answer: Answer) -> Answer:
    """A web server's look at a request, put off while viser's server is half made: it would fail the page."""

    def look(connection: ServerConnection, request: Request) -> Response | None:
        if not whole.is_set():
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "the viewer is starting\n")
        return answer(connection, request)

    return look


@contextlib.contextmanager
def _guarded(access: Access, title: str, whole: threading.Event) -> Iterator[list[bool]]:
    """Within, web servers of websockets ask `access` first, and pages come back; yields whether any started.

    viser has no hook for it: it hands its own first look at a request to `serve`, and keeps the server.
    """
    module: Any = websockets.asyncio.server
    original, coming_back = module.serve, Reconnection()
    started: list[bool] = []

    def guarded(*args: Any, process_request: Any, **options: Any) -> Any:
        started.append(True)
        answer = _once(whole, coming_back.guard(dressed(process_request, title)))
        return original(*args, process_request=access.guard(answer), **options)

    module.serve = guarded
    try:
        yield started
    finally:
        module.serve = original
