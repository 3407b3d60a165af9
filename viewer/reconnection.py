"""A page that comes back by itself when its viewer, or the next one at the same port, answers again.

viser's page tries a new connection every second, and drops the one before. After some failures Chrome lets a
page wait for each connection, up to 5 seconds (its throttle of WebSockets that fail), so that none lives long
enough: the page never comes back. Besides, it only tries while it has the focus, and whoever starts the next
viewer is in a terminal. So viser's own attempts are kept from happening: a small script in the page asks with
plain requests, which nobody holds back, and connects once somebody answers. Whatever viewer that is fills the
page anew; it is loaded again only for one of another version.
"""

from __future__ import annotations

import gzip
import http
import json
from collections.abc import Callable, Mapping

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

Answer = Callable[[ServerConnection, Request], Response | None]

PAGES = ("/", "/index.html")
ASKED = "/alive"  # by the script
GONE = (
    "The program has ended, and what it showed last stays here. "
    "This page comes back by itself when the next viewer starts at its address."
)
OTHER = "Another viewer is here now: open the address that it printed."

# open: whether viser's worker has said that it is connected; focus: what viser is told to keep it from trying
SCRIPT = """<script>
(() => {
  const gone = %(gone)s, other = %(other)s;
  let open = true, focus = false, asking = false, note = null;
  document.hasFocus = () => focus;
  const tell = text => {
    if (text === null) { if (note) note.remove(); note = null; return; }
    if (!note) {
      note = document.createElement("div");
      note.id = "splatgen-away";
      note.setAttribute("role", "status");
      note.style.cssText = "position:fixed;left:0;right:0;top:0;z-index:100000;padding:.6em 1em;" +
        "font:14px/1.4 system-ui,sans-serif;text-align:center;background:#333;color:#fff";
      document.body.append(note);
    }
    note.textContent = text;
  };
  const connect = () => {
    focus = true;
    window.dispatchEvent(new Event("focus"));
    focus = false;
    window.dispatchEvent(new Event("blur"));
  };
  const ask = async () => {
    if (open || asking) return;
    asking = true;
    let wait = 1000;
    try {
      const answer = await fetch(new URL("alive", location.href), {cache: "no-store"});
      if (answer.ok) { wait = 6000; connect(); } else tell(answer.status === 503 ? gone : other);
    } catch { tell(gone); }
    asking = false;
    setTimeout(ask, wait);
  };
  window.Worker = class extends window.Worker {
    constructor(...given) {
      super(...given);
      this.addEventListener("message", ({data}) => {
        const kind = data && data.type;
        if (kind === "connected") { open = true; tell(null); }
        if (kind === "closed" && data.versionMismatch) location.reload();
        if (kind === "closed" && open) { open = false; setTimeout(ask, 300); }
      });
    }
  };
})();
</script>"""


class Reconnection:
    """What one viewer adds to its page, and what it answers the pages that ask."""

    def __init__(self) -> None:
        self._page = b""  # with the script, gzip; made once

    def guard(self, answer: Answer) -> Answer:
        """A web server's look at a request before viser's."""

        def look(connection: ServerConnection, request: Request) -> Response | None:
            path = request.path.partition("?")[0]
            if request.headers.get("Upgrade") == "websocket" or path not in (*PAGES, ASKED):
                return answer(connection, request)
            if path == ASKED:
                return _response(b"yes", "text/plain")
            response = answer(connection, request)
            return response if response is None else self._scripted(response)

        return look

    def _scripted(self, response: Response) -> Response:
        """viser's page with the script in it, which has to run before viser's."""
        packs = response.headers.get("Content-Encoding") == "gzip"
        if not self._page:
            plain = gzip.decompress(response.body) if packs else bytes(response.body)
            head, tag, rest = plain.partition(b"<head>")
            if not tag:
                raise RuntimeError("this viser's page has no head: install viser>=1.1,<1.2")
            self._page = gzip.compress(head + tag + self.script().encode() + rest)
        if packs:
            return _response(self._page, "text/html; charset=utf-8", {"Content-Encoding": "gzip"})
        plain = gzip.decompress(self._page)
        return _response(plain, "text/html; charset=utf-8", {"Content-Encoding": "identity"})

    def script(self) -> str:
        """For the page of this viewer."""
        return SCRIPT % {"gone": json.dumps(GONE), "other": json.dumps(OTHER)}


def _response(content: bytes, kind: str, more: Mapping[str, str] = {}) -> Response:
    told = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store", **more}
    headers = Headers(told)
    return Response(http.HTTPStatus.OK.value, "OK", headers, content)
