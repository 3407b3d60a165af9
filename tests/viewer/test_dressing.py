"""viser's page with ours around it."""

from __future__ import annotations

import gzip
import http.client

from pages import viewer
from splatgen_viewer.dressing import page

from splatgen.loop.snapshot import Channel

PLAIN = b"<html><head><title>Viser</title><script>run()</script></head><body></body></html>"


def test_a_page_gets_a_title_and_what_stands_before_its_script():
    text = page(PLAIN, "a <b> cube", False).decode()
    assert "<title>a &lt;b&gt; cube</title>" in text
    assert "Viser" not in text
    assert text.index("prefers-color-scheme") < text.index('<div id="splatgen-first">') < text.index("run()")
    assert gzip.decompress(page(gzip.compress(PLAIN), "a <b> cube", True)).decode() == text


def test_a_page_without_a_script_stays_as_it_was():
    assert page(b"<p>no such file</p>", "title", False) == b"<p>no such file</p>"


def test_the_page_that_is_served_is_whole(tmp_path):
    with viewer(Channel(), title="a red cube") as it:
        for zipped in (False, True):
            connection = http.client.HTTPConnection("127.0.0.1", it.port)
            connection.request("GET", "/", headers={"Accept-Encoding": "gzip"} if zipped else {})
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            assert len(content) == int(answer.headers["Content-Length"])
            text = (gzip.decompress(content) if zipped else content).decode()
            assert "<title>a red cube</title>" in text
            assert text.rstrip().endswith("</html>")
