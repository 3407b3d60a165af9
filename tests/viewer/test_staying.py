"""A run that is watched ends, and its page is still there: to look at, to save from, to know where it is."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest
from faults import only
from pages import PATIENCE, Page, free_port, until
from websockets.exceptions import InvalidStatus

from splatgen import formats
from splatgen.commands.common import viewer as viewing
from splatgen.loop import object_run
from splatgen.loop.snapshot import Channel
from splatgen.runs import run_folder
from splatgen.runs.run_folder import Run

MINI = ["--prior", "toybox-mini", "--reward", "toybox-mini", "--device", "cpu", "--quiet"]
TINY = [*MINI, "--views.count", "1", "--views.size", "16", "--splats.count", "40", "--output.size", "16"]
RUN = ["generate", "a red cube", *TINY, "--steps", "4", "--output.frames", "0"]


@pytest.fixture(autouse=True)
def _heard():
    """Whoever runs the tests in the background has Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class At:
    """An address of which the port is known."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}/"


class Visitor(threading.Thread):
    """Somebody with a page, who does something when the run has ended, and then presses Ctrl-C."""

    def __init__(self, port, act, end=signal.SIGINT):
        super().__init__(daemon=True)
        self.port, self.act, self.end, self.found, self.error = port, act, end, None, None

    def run(self):
        try:
            with contextlib.ExitStack() as stack:
                self.page = until(self._connected)
                stack.enter_context(self.page)
                self.found = self.act(self.page)
        except BaseException as error:  # noqa: BLE001 - for the test
            self.error = error
        finally:
            os.kill(os.getpid(), self.end)

    def _connected(self):
        with contextlib.suppress(OSError, InvalidStatus):  # not there, or not yet
            return Page(At(self.port))
        time.sleep(0.05)
        return None


def wait_for(page, text):
    return page.wait(lambda m: text in str(m.get("updates") or m.get("props")))


def visited(cli, monkeypatch, act, *words):
    """A run whose first step waits for its visitor, and what the visitor found."""
    port = free_port()
    visitor = Visitor(port, act)
    inside = object_run.advance

    def advance(*given):
        until(lambda: hasattr(visitor, "page"))
        return inside(*given)

    monkeypatch.setattr(object_run, "advance", advance)
    visitor.start()
    done = cli(*words, "--viewer", "--port", port)
    visitor.join(PATIENCE)
    if visitor.error is not None:
        raise visitor.error
    return done, visitor.found


def save(page):
    """What a page gets that saves, looks at the status and reads the words."""
    wait_for(page, "to see it again")
    page.press("Save .ply")
    part = page.wait(lambda m: m["type"] == "FileTransferPart")
    name = next(m for m in page.seen if m["type"] == "FileTransferStartDownload")["filename"]
    page.press("Take a checkpoint")
    wait_for(page, "the run has ended, as done: nothing changes any more")
    return name, part["content"], page.texts()


def test_after_its_end_a_page_saves_and_says_where_the_run_is(cli, tmp_path, monkeypatch):
    done, (name, content, texts) = visited(cli, monkeypatch, save, *RUN, "--out", tmp_path)
    run = only(tmp_path)
    assert (done.code, done.out) == (0, f"{run}\n")
    assert "the page stays until Ctrl-C (--viewer-wait no: it ends with the run)" in done.err
    assert name == "a-red-cube.ply"
    (tmp_path / "saved.ply").write_bytes(content)
    assert len(formats.load(tmp_path / "saved.ply")) == len(formats.load(run / "splats.ply"))
    assert "<b>step 4 of 4</b> · done" in texts
    assert f"done: {run}; to see it again: splatgen view {run}" in texts


def stop(page):
    page.press("Stop and keep")
    wait_for(page, "· stopped")
    page.press("Save .ply")
    page.wait(lambda m: m["type"] == "FileTransferPart")


def test_stopped_in_the_page_it_is_kept_and_the_page_stays(cli, tmp_path, monkeypatch):
    words = ["--steps", "100000", "--out", tmp_path]
    done, _ = visited(cli, monkeypatch, stop, *RUN, *words)
    run = only(tmp_path)
    assert (done.code, done.out) == (0, f"{run}\n")
    assert (run / "splats.ply").is_file()
    assert "the page stays" in done.err


def test_a_run_that_fails_keeps_its_page_too_and_its_exit_code(cli, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    def look(page):
        wait_for(page, "· oom")
        page.press("Take a checkpoint")  # Ctrl-C before this is answered would be the run's
        wait_for(page, "the run has ended, as oom: nothing changes any more")
        return page.texts()

    words = [*RUN, "--output.checkpoint-seconds", "1e-9", "--out", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr(object_run, "score_final", fail)
        done, _ = visited(cli, patch, look, *words)
    assert (done.code, done.out) == (5, "")
    assert "splatgen: the run has ended: " in done.err
    assert run_folder.read(Run(folder=only(tmp_path)))["status"] == "oom"


class Readers:
    def __init__(self, count):
        self.server = self
        self.count = count

    def readers(self):
        return self.count


@pytest.mark.parametrize(
    ("wait", "readers", "asked", "stays"),
    [
        ("auto", 1, False, True),
        ("auto", 0, False, False),
        ("auto", 1, True, False),  # Ctrl-C or TERM wants the process to end
        ("no", 1, False, False),
        ("yes", 0, False, True),
        ("yes", 0, True, False),
    ],
)
def test_it_stays_for_whom_it_should(tmp_path, wait, readers, asked, stays):
    channel = Channel()
    options = viewing.ViewerOptions(viewer=True, viewer_wait=wait)
    assert not viewing.wanted(Readers(readers), channel, options)  # no run was made
    channel.folder, channel.asked = tmp_path, asked
    assert viewing.wanted(Readers(readers), channel, options) == stays


def test_open_starts_the_browser_that_is_chosen(tmp_path, monkeypatch, capsys):
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    script.chmod(0o755)
    place = viewing.ViewerAddress(port=free_port(), open=True)
    monkeypatch.setenv("BROWSER", f"{script} %s")
    with viewing.watched(viewing.ViewerOptions(place=place), viewing.Config()) as channel:
        assert channel is not None
        until(lambda: (tmp_path / "opened").exists() and (tmp_path / "opened").read_text())
    assert f"http://127.0.0.1:{place.port}/" in (tmp_path / "opened").read_text()
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with viewing.watched(viewing.ViewerOptions(place=place), viewing.Config()):
        pass
    assert "no browser could be started here: open the address yourself" in capsys.readouterr().err
