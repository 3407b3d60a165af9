"""A page whose viewer ends comes back when the next one starts, in a real browser."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
from pages import PATIENCE, free_port, snapshot, until, viewer
from splatgen_viewer import reconnection
from splatgen_viewer.live import Viewer
from splatgen_viewer.page import Subject
from test_browser import browser, page  # noqa: F401 - fixtures; skips without a browser

from splatgen.loop.snapshot import Channel


def start(port, title, step):
    channel = Channel(interval=0.0)
    channel.put(snapshot(step))
    return Viewer(channel, Subject(title=title), host="127.0.0.1", port=port)


def test_a_page_comes_back_when_the_next_viewer_starts_on_its_port(page):  # noqa: F811
    port, tries = free_port(), []
    page.on("console", lambda m: tries.append(m.text) if m.text.startswith("Connecting to") else None)
    with start(port, "one", 1) as it:
        page.goto(it.url)
        page.get_by_text("step 1 of 100").wait_for()
        assert page.locator("#splatgen-away").count() == 0
    page.locator("#splatgen-away").wait_for()
    assert "comes back by itself" in page.locator("#splatgen-away").inner_text()
    page.wait_for_timeout(3000)
    assert page.get_by_text("step 1 of 100").is_visible()  # what it showed last
    assert len(tries) == 1  # each that fails makes Chrome wait longer for the next
    with start(port, "two", 2) as it:
        until(lambda: page.wait_for_timeout(50) or it.server.readers())
        page.get_by_text("step 2 of 100").wait_for()
        page.locator("#splatgen-away").wait_for(state="detached")
        assert len(tries) == 2


def test_a_page_that_was_cut_off_connects_to_the_same_viewer_again(page):  # noqa: F811
    with start(free_port(), "one", 1) as it:
        page.goto(it.url)
        page.get_by_text("step 1 of 100").wait_for()
        came = []
        it.server.on_client_connect(came.append)
        until(lambda: page.wait_for_timeout(20) or came)  # those that are here already come, too
        it.server._websock_server.disconnect_all_clients()
        until(lambda: page.wait_for_timeout(20) or len(came) == 2)


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=PATIENCE) as answer:
        return answer.read(), answer.headers


def test_the_script_stands_before_everything_of_visers():
    with viewer(Channel()) as it:
        plain, headers = get(it.url)
        assert headers["Content-Encoding"] == "identity"
        assert plain.index(b"document.hasFocus") < plain.index(b"<script data-p")
        packed, headers = get(it.url, **{"Accept-Encoding": "gzip"})
        assert headers["Content-Encoding"] == "gzip"
        assert reconnection.gzip.decompress(packed) == plain
        assert "connect-src 'self'" in headers["Content-Security-Policy"]
        assert get(f"{it.url}alive")[0] == b"yes"


@pytest.mark.parametrize("path", ["alive", ""])
def test_who_may_not_see_the_page_is_told_nothing(path):
    with Viewer(Channel(), Subject(title="a test"), host="0.0.0.0", port=free_port()) as it:
        with pytest.raises(urllib.error.HTTPError, match="403"):
            get(f"http://127.0.0.1:{it.port}/{path}")
        assert get(f"http://127.0.0.1:{it.port}/{it.access.token}/alive")[0] == b"yes"
