"""What viewer tests share: known scenes, and pages without a browser, which speak viser's protocol."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import viser
import zstandard
from splatgen_viewer.live import Viewer
from splatgen_viewer.page import Subject
from websockets.sync.client import ClientConnection, connect

from splatgen.loop.snapshot import Candidate, Channel, Cloud, Snapshot

LEFT, RIGHT = (-0.5, 0.0, 0.0), (0.5, 0.0, 0.0)  # of the front view
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
PROTOCOL = f"viser-v{viser.__version__}"
PATIENCE = 240.0  # seconds, for what happens at once on an idle machine
PORTS = range(20_000, 32_000)  # below those that systems give to whoever asks for any

_ports = itertools.count(os.getpid() * 211)  # tests run side by side: each process begins elsewhere
_marks = itertools.count()


def balls(*parts: tuple[tuple[float, ...], tuple[float, ...]], count: int = 300, size: float = 0.3) -> Cloud:
    """Balls of splats, a (centre, colour) each."""
    generator = np.random.default_rng(0)
    inside = generator.normal(size=(count, 3))
    inside *= size / np.linalg.norm(inside, axis=1, keepdims=True)
    means = np.concatenate([inside + np.array(centre) for centre, _ in parts])
    rgbs = np.concatenate([np.tile(colour, (count, 1)) for _, colour in parts])
    n = len(means)
    return Cloud(
        means=means.astype(np.float32),
        covariances=np.tile(np.eye(3) * 0.05**2, (n, 1, 1)).astype(np.float32),
        rgbs=rgbs.astype(np.float32),
        opacities=np.full(n, 0.9, np.float32),
    )


def candidate(role: str = "kept", reward: float | None = 0.5) -> Candidate:
    picture = np.full((16, 16, 3), (200, 30, 30), np.uint8)
    return Candidate(picture=picture, reward=reward, weight=1.0, role=role)


def snapshot(step: int = 1, cloud: Cloud | None = None, status: str = "running", **fields: Any) -> Snapshot:
    row = {"step": step - 1, "loss": 1.0 / step, "reward/toybox": step / 100, "splats/count": 600}
    values = {"steps": 100, "seconds": 0.1 * step, "rows": (row,), **fields}
    shown = balls((LEFT, RED), (RIGHT, BLUE)) if cloud is None else cloud
    return Snapshot(step=step, status=status, cloud=shown, **values)


@contextlib.contextmanager
def viewer(channel: Channel, **subject: Any) -> Iterator[Viewer]:
    """A viewer of a channel on a free port of this machine."""
    with Viewer(channel, Subject(**{"title": "a test", **subject}), host="127.0.0.1", port=free_port()) as it:
        yield it


def free_port() -> int:
    """A port that nobody else is given meanwhile: not by the system, nor by this in another process."""
    while True:
        port = PORTS[next(_ports) % len(PORTS)]
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("0.0.0.0", port))
            return port


def until(done: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What `done` returns once it is true; AssertionError after too long."""
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
    return found


def settle(it: Viewer, *pages: Page) -> None:
    """Until the pump has done what it was asked for by now, and all that came of it is on these pages.

    Markers follow the messages to all and to each: what is not there before them, never comes.
    """
    turns: list[None] = []
    panels: Any = it.pump.page
    tick = panels.tick
    panels.tick = lambda: (turns.append(None), tick())
    until(lambda: len(turns) > 1)  # one of them whole
    panels.tick = tick
    all_of_them, each = (f"mark {next(_marks)}" for _ in range(2))
    it.server.gui.add_html(all_of_them)
    for client in it.server.get_clients().values():
        client.gui.add_html(each)
    for page in pages:
        for mark in (all_of_them, each):
            page.wait(lambda m, mark=mark: (m.get("props") or {}).get("content") == mark)


class Page:
    """A page without a browser: reads messages, moves its camera, presses buttons."""

    def __init__(self, it: Viewer, **options: Any) -> None:
        patient = {"max_size": None, "max_queue": None, "ping_interval": None, "open_timeout": PATIENCE}
        address = it.url.replace("http", "ws")
        self.socket: ClientConnection = connect(address, subprotocols=[PROTOCOL], **patient, **options)
        self.seen: list[dict[str, Any]] = []

    def __enter__(self) -> Page:
        self.look()
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, **message: Any) -> None:
        self.socket.send(msgspec.msgpack.encode(message))

    def look(self, position: tuple[float, ...] = (0.0, 0.0, 3.0)) -> None:
        self.send(
            type="ViewerCameraMessage",
            wxyz=(0.0, 1.0, 0.0, 0.0),
            position=position,
            fov=1.0,
            near=0.01,
            far=100.0,
            image_height=90,
            image_width=120,
            look_at=(0.0, 0.0, 0.0),
            up_direction=(0.0, 1.0, 0.0),
        )

    def read(self, seconds: float = 0.2) -> list[dict[str, Any]]:
        """All messages that come until none has for a while."""
        fresh: list[dict[str, Any]] = []
        with contextlib.suppress(TimeoutError):
            while True:
                content = self.socket.recv(timeout=seconds)
                assert isinstance(content, bytes)
                fresh += messages(content)
        self.seen += fresh
        return fresh

    def wait(self, matches: Callable[[dict[str, Any]], bool], seconds: float = PATIENCE) -> dict[str, Any]:
        """The first message, of all that came or come, that matches."""
        return until(lambda: next(filter(matches, self.seen), None) or (self.read(0.02) and None), seconds)

    def element(self, label: str) -> str:
        """The id of a labelled GUI element."""
        found = self.wait(lambda m: (m.get("props") or {}).get("label") == label and "uuid" in m)
        return str(found["uuid"])

    def press(self, label: str) -> None:
        self.fill(label, True)

    def fill(self, label: str, value: object) -> None:
        self.send(type="GuiUpdateMessage", uuid=self.element(label), updates={"value": value})

    def texts(self) -> str:
        """All HTML that was sent, oldest first."""
        found = []
        for message in self.seen:
            values = message.get("props") or message.get("updates") or {}
            found.append(str(values.get("content", "")))
        return "\n".join(found)


def messages(content: bytes) -> list[dict[str, Any]]:
    """The messages of one window, with arrays in place of where they are."""
    size, packed = (int.from_bytes(content[a : a + 8], "little") for a in (0, 8))
    head = zstandard.ZstdDecompressor().decompress(content[16 : 16 + packed], max_output_size=size)
    window = msgspec.msgpack.decode(head)
    offset, buffers = 16 + packed, []
    for length in window["binaryBufferLengths"]:
        offset += -offset % 8
        buffers.append(content[offset : offset + length])
        offset += length
    return [_filled(message, buffers) for message in window["messages"]]


def _filled(value: Any, buffers: list[bytes]) -> Any:
    if isinstance(value, dict):
        if "__binary_index" in value:
            return buffers[value["__binary_index"]]
        return {key: _filled(inner, buffers) for key, inner in value.items()}
    return [_filled(inner, buffers) for inner in value] if isinstance(value, list | tuple) else value


class Stalled:
    """A page that connects and then never reads."""

    def __init__(self, it: Viewer) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(("127.0.0.1", it.port))
        request = (
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{it.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n"
        )
        self.socket.sendall(request.encode())
        assert self.socket.recv(12) == b"HTTP/1.1 101"

    def __enter__(self) -> Stalled:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
