"""Nobody but the user's own pages speaks to a run."""

from __future__ import annotations

import http.client
import socket
import threading

import pytest
from pages import PATIENCE, PROTOCOL, Page, free_port, settle, until, viewer
from splatgen_viewer.access import Access, Refused, is_loopback
from splatgen_viewer.live import Viewer
from splatgen_viewer.page import Subject
from splatgen_viewer.serving import PORTS, Server
from splatgen_viewer.serving import free_port as free_from
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.http11 import Request
from websockets.sync.client import connect

from splatgen.loop.snapshot import Channel


def request(path="/", **headers):
    return Request(path, Headers(**headers))


OPEN, SECRET = Access(), Access(token="s3cret")


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("LOCALHOST.", True),
        ("0.0.0.0", False),
        ("192.168.1.4", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_what_is_the_loopback(host, local):
    assert is_loopback(host) == local
    assert bool(Access.to(host).token) != local


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:9000", "[::1]:8080", "localhost"])
def test_a_page_of_this_machine_is_let_in_by_any_of_its_names(host):
    assert OPEN.admit(request(Host=host)).path == "/"
    assert OPEN.admit(request(Host=host, Origin=f"http://{host}")).path == "/"


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({}, "no usable Host"),
        ({"Host": "a b"}, "no usable Host"),
        ({"Host": "127.0.0.1; script-src *"}, "no usable Host"),
        ({"Host": "evil.example:8080"}, "not a name of this machine"),
        ({"Host": "192.168.1.4:8080"}, "not a name of this machine"),
        ({"Host": "127.0.0.1:8080", "Origin": "http://evil.example"}, "from elsewhere"),
        ({"Host": "127.0.0.1:8080", "Origin": "http://127.0.0.1:3000"}, "from elsewhere"),
        ({"Host": "127.0.0.1:8080", "Origin": "http://localhost:8080"}, "from elsewhere"),
        ({"Host": "127.0.0.1:8080", "Origin": "null"}, "from elsewhere"),
        ({"Host": "127.0.0.1:8080", "Origin": ""}, "from elsewhere"),
    ],
)
def test_pages_from_elsewhere_and_foreign_names_are_refused(headers, why):
    with pytest.raises(Refused, match=why):
        OPEN.admit(request(**headers))


@pytest.mark.parametrize(
    ("path", "inner"),
    [("/s3cret", "/"), ("/s3cret/", "/"), ("/s3cret/?websocket=ws://x", "/"), ("/s3cret/a/b.js", "/a/b.js")],
)
def test_the_token_is_the_first_part_of_the_path(path, inner):
    assert SECRET.admit(request(path, Host="10.0.0.5:8080")).path == inner


@pytest.mark.parametrize("path", ["/", "/s3cre", "/s3cret2/", "//s3cret/", "/x/s3cret/", "/%733cret/", "/é/"])
def test_without_the_token_nothing_is_shown(path):
    with pytest.raises(Refused, match="token"):
        SECRET.admit(request(path, Host="10.0.0.5:8080"))


def test_tokens_are_long_and_new():
    first, second = Access.to("0.0.0.0").token, Access.to("0.0.0.0").token
    assert first != second
    assert len(first) >= 20


def get(it, path, host=None):
    connection = http.client.HTTPConnection("127.0.0.1", it.port, timeout=PATIENCE)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{it.port}"})
    return connection.getresponse()


def test_a_real_server_shows_its_page_with_rules_for_the_browser():
    with viewer(Channel()) as it:
        page = get(it, "/")
        assert page.status == 200
        assert b"<title>a test</title>" in page.read()
        rules = page.headers["Content-Security-Policy"]
        assert f"connect-src 'self' ws://127.0.0.1:{it.port} " in rules
        assert "frame-ancestors 'none'" in rules
        assert get(it, "/../pyproject.toml").status == 404
        assert get(it, "/", host=f"evil.example:{it.port}").status == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null"])
def test_a_script_of_another_page_cannot_connect(origin):
    with viewer(Channel()) as it:
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://127.0.0.1:{it.port}", origin=origin, subprotocols=[PROTOCOL])
        assert refused.value.response.status_code == 403
        with Page(it, origin=f"http://127.0.0.1:{it.port}") as page:
            assert page.element("Pause")


@pytest.fixture
def outside():
    """A viewer that listens on all addresses."""
    with Viewer(Channel(), Subject(title="a test"), host="0.0.0.0", port=free_port()) as it:
        it.host = "127.0.0.1"  # the name in its address, so that tests need no other network
        yield it


def test_beyond_the_loopback_the_address_holds_a_token_for_page_and_socket(outside):
    token = outside.access.token
    assert outside.url == f"http://127.0.0.1:{outside.port}/{token}/"
    assert get(outside, "/").status == 403
    assert get(outside, f"/{token}/").status == 200
    with pytest.raises(InvalidStatus):
        connect(f"ws://127.0.0.1:{outside.port}/", subprotocols=[PROTOCOL])
    with Page(outside) as page:
        assert page.element("Pause")


def test_a_page_cannot_open_a_tunnel_to_the_outside(caplog, monkeypatch):
    opened = []
    monkeypatch.setattr("viser._viser.ViserTunnel", lambda *_: opened.append(True))
    with viewer(Channel()) as it, Page(it) as page:
        page.send(type="ShareUrlRequest")
        page.send(type="ShareUrlDisconnect")
        assert page.element("Pause")
        until(lambda: "asked to share" in caplog.text)
        settle(it, page)
        assert not any("ShareUrl" in m["type"] for m in page.seen)
    assert opened == []


def test_a_server_that_starts_unguarded_is_not_used(monkeypatch):
    started = []

    def unguarded(self, *_, **__):
        started.append(self)

    monkeypatch.setattr("viser.ViserServer.__init__", unguarded)
    monkeypatch.setattr("viser.ViserServer.stop", lambda self: started.pop())
    with pytest.raises(RuntimeError, match="unguarded"):
        Viewer(Channel(), Subject(title="a test"), host="127.0.0.1", port=free_port())
    assert started == []


def test_who_comes_while_the_server_is_made_is_told_to_come_again(monkeypatch):
    told, inside = [], Server.__init__

    def made(self, **options):
        inside(self, **options)
        connection = http.client.HTTPConnection("127.0.0.1", options["port"], timeout=PATIENCE)
        connection.request("GET", "/alive")
        told.append(connection.getresponse().status)

    monkeypatch.setattr(Server, "__init__", made)
    with viewer(Channel()) as it:
        assert told == [503]
        assert get(it, "/alive").status == 200


def test_nonsense_from_a_page_closes_that_page_alone():
    with viewer(Channel()) as it, Page(it) as page:
        with Page(it) as broken:
            broken.socket.send(b"\xff\x00 nonsense")
            with pytest.raises(ConnectionClosedError) as closed:
                list(broken.socket)
            assert closed.value.rcvd.code == 1011
        assert page.element("Pause")


def test_a_port_that_is_taken_gives_the_next(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert taken < free_from("127.0.0.1", taken) < taken + PORTS
        monkeypatch.setattr("splatgen_viewer.serving.PORTS", 1)
        with pytest.raises(OSError, match="in use"):
            free_from("127.0.0.1", taken)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_a_host_that_is_not_of_this_machine_is_an_error_at_once(host):
    with pytest.raises(OSError, match=r".") as error:
        Viewer(Channel(), Subject(title="a test"), host=host, port=8080)
    assert error.value.errno is not None


def test_no_thread_is_left_behind():
    before = set(threading.enumerate())
    with viewer(Channel()) as it, Page(it) as page:
        page.element("Pause")
    left = {t for t in threading.enumerate() if t.is_alive()} - before
    for thread in left:
        thread.join(timeout=PATIENCE)
    assert not [t.name for t in left if t.is_alive()]
