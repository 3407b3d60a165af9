"""Who may open the page and speak to the run.

viser itself asks nobody for anything: whoever reaches its port may press every button, also a script on a
web page of somebody else that is open in the same browser. So each request is looked at before viser sees it.

    Host    on the loopback it has to be a name of this machine, or a foreign name could be pointed here
    Origin  what a browser says of the page that connects has to be the page that was served here
    token   beyond the loopback, the first part of the path, which the printed address holds

Without TLS, whoever can listen to the network between can read the token: an SSH tunnel is the safe way.
"""

from __future__ import annotations

import dataclasses
import hmac
import ipaddress
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

Answer = Callable[[ServerConnection, Request], Response | None]

_HOST = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?")


class Refused(Exception):
    """A request that is not let in; the message is for whoever sent it."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens at a host name or address."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a request has to bring."""

    token: str = ""  # none is asked for when it is empty, on the loopback

    @staticmethod
    def to(host: str) -> Access:
        """Of a viewer that listens at a host: with a new token beyond the loopback."""
        return Access(token="" if is_loopback(host) else secrets.token_urlsafe(16))

    def path(self) -> str:
        """Of the page's address."""
        return f"/{self.token}/" if self.token else "/"

    def admit(self, request: Request) -> Request:
        """The request as viser should see it; raises Refused."""
        host = request.headers.get("Host", "")
        if not _HOST.fullmatch(host):
            raise Refused("no usable Host")
        name = urlsplit(f"//{host}").hostname or ""
        if not self.token and not is_loopback(name):
            raise Refused(f"{name} is not a name of this machine: open the address that splatgen printed")
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Refused("a page from elsewhere may not speak to this run")
        return dataclasses.replace(request, path=self._within(request.path))

    def _within(self, path: str) -> str:
        if not self.token:
            return path
        first, _, rest = path.removeprefix("/").partition("?")[0].partition("/")
        if not hmac.compare_digest(first.encode(), self.token.encode()):
            raise Refused("the address lacks its token: open the one that splatgen printed")
        return f"/{rest}"

    def guard(self, answer: Answer) -> Answer:
        """A web server's first look at a request, before that of another."""

        def look(connection: ServerConnection, request: Request) -> Response | None:
            try:
                admitted = self.admit(request)
            except Refused as refused:
                return connection.respond(403, f"{refused}\n")
            response = answer(connection, admitted)
            if response is not None:
                response.headers["Content-Security-Policy"] = policy(request.headers["Host"])
            return response

        return look


def policy(host: str) -> str:
    """Rules for the browser: the page speaks to nobody else, and is shown in nobody's frame.

    viser's page would take another server's address, and so its contents, from its own address.
    """
    speaks_to = f"connect-src 'self' ws://{host} wss://{host} data: blob:"
    return f"{speaks_to}; frame-ancestors 'none'; form-action 'none'; base-uri 'none'"
