"""A Hugging Face hub on this machine's loopback, and its cache as a download leaves it.

The server speaks what huggingface_hub asks: a repository's listing, HEAD and GET of a file, and the errors.
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from splatgen.models.catalogue import PUBLISHED
from splatgen.models.weights import SINGLE_FILES

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def tensors(size: int = 16) -> bytes:
    """A .safetensors file of one tensor of so many bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\x07" * size


def content(name: str) -> bytes:
    return tensors(len(name)) if name.endswith(".safetensors") else f"content of {name}".encode()


def published_files(name: str, *, halves: bool = True) -> dict[str, dict[str, bytes]]:
    """What the repositories of a published model hold, as far as it is needed, by repository."""
    repos: dict[str, dict[str, bytes]] = {}
    for part in PUBLISHED[name].parts:
        for entry in part.files:
            patterns = entry.split("|")
            pattern = patterns[0] if halves or len(patterns) < 2 else patterns[1]
            file = pattern.replace("fp16*", "fp16").replace("/*.json", "/extra.json").replace("*", "")
            repos.setdefault(part.repo, {})[file] = content(file)
    return repos


def lay(cache: Path, repo: str, files: dict[str, bytes], commit: str = COMMIT) -> Path:
    """Put a repository into a cache in the hub's layout; returns the snapshot's folder."""
    home = cache / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(commit)
    snapshot = home / "snapshots" / commit
    for name, data in files.items():
        blob = home / "blobs" / hashlib.sha256(data).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(data)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(blob)
    return snapshot


def lay_model(cache: Path, name: str, *, halves: bool = True) -> list[Path]:
    """Put a published model into a cache."""
    return [lay(cache, repo, files) for repo, files in published_files(name, halves=halves).items()]


@dataclass
class Hub:
    """What the server holds, how it misbehaves, and what it was asked."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = ""  # that opens the gates
    status: int = 0  # answer everything with it
    revision: str = "main"
    stalls: bool = False
    hangs: set[str] = field(default_factory=set)  # files whose body never comes
    cuts: dict[str, int] = field(default_factory=dict)  # file: how often its body ends early
    pages: dict[str, bytes] = field(default_factory=dict)  # what is no repository
    asked: list[str] = field(default_factory=list)
    address: str = ""
    closing: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path}")
        if hub.stalls:
            hub.closing.wait(600)
            return
        if hub.status:
            self.send(hub.status, b"no")
        elif path in hub.pages:
            self.send(200, hub.pages[path])
        elif path.startswith("/api/models/"):
            self.listing(path.removeprefix("/api/models/"))
        else:
            self.file(path)

    def listing(self, path: str) -> None:
        repo, _, revision = path.partition("/revision/")
        if not self.refused(repo, revision):
            files = self.server.hub.repos[repo]
            rows = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            body = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": rows, "tags": []}
            self.send(200, json.dumps(body).encode())

    def file(self, path: str) -> None:
        hub = self.server.hub
        repo, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if self.refused(repo, revision):
            return
        if repo in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.send(401, b"", {"X-Error-Code": "GatedRepo"})
        elif name not in hub.repos[repo]:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            data = hub.repos[repo][name]
            start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
            tag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            if start:
                tag["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            hangs = self.command == "GET" and name in hub.hangs
            self.send(206 if start else 200, data[start:], tag, short=self.cut(name), hangs=hangs)

    def cut(self, name: str) -> bool:
        left = self.server.hub.cuts.get(name, 0)
        if self.command == "HEAD" or left == 0:
            return False
        self.server.hub.cuts[name] = left - 1
        return True

    def refused(self, repo: str, revision: str) -> bool:
        if repo not in self.server.hub.repos:
            self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("", self.server.hub.revision, COMMIT):
            self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return False
        return True

    def send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        short: bool = False,
        hangs: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if hangs:
            self.server.hub.closing.wait(600)
        elif self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if short else body)
        if short or hangs:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve it on a free port of 127.0.0.1."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.hub = hub
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield hub
        hub.closing.set()
        server.shutdown()


def is_weights(name: str) -> bool:
    return name.endswith(SINGLE_FILES)
