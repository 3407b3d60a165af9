"""viser's page with a title, colours, keys and files of ours: what its own settings have no room for.

The script and the style stand before viser's, so that there is something to see, and something that listens,
while eight hundred kilobytes are unpacked.
"""

from __future__ import annotations

import functools
import gzip
import html
from pathlib import Path

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from .access import Answer

HERE = Path(__file__).parent
LOADER = b"<script"  # the first of viser's page


def dressed(answer: Answer, title: str) -> Answer:
    """A web server's answers, with our page around viser's."""

    def look(connection: ServerConnection, request: Request) -> Response | None:
        response = answer(connection, request)
        if response is None or not response.headers.get("Content-Type", "").startswith("text/html"):
            return response
        zipped = response.headers.get("Content-Encoding") == "gzip"
        response.body = page(bytes(response.body), title, zipped)
        del response.headers["Content-Length"]
        response.headers["Content-Length"] = str(len(response.body))
        return response

    return look


@functools.lru_cache(maxsize=4)
def page(plain: bytes, title: str, zipped: bool) -> bytes:
    """viser's index.html with ours before its first script; of a page without one, as it was."""
    whole = gzip.decompress(plain) if zipped else plain
    head, found, rest = whole.partition(LOADER)
    if not found:
        return plain
    begin, open_, after = head.partition(b"<title>")
    named = after.partition(b"</title>")[2] if open_ else after
    said = html.escape(title).encode()
    ours = f"<style>{_file('page.css')}</style><script>{_file('page.js')}</script>".encode()
    first = b'<div id="splatgen-first">splatgen is loading this page</div>'
    result = b"".join((begin, b"<title>", said, b"</title>", named, ours, first, found, rest))
    return gzip.compress(result, 6) if zipped else result


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
