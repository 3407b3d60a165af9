"""One process at a time in a run folder, and what a dead one leaves is taken over."""

import logging
import os
import signal
import subprocess
import sys
import threading

import pytest

from splatgen.commands.common import errors
from splatgen.runs import lock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")

OTHER = """
import sys, time
from pathlib import Path
from splatgen.runs import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that works in the folder."""
    process = subprocess.Popen([sys.executable, "-c", OTHER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_told_who_has_it(other, tmp_path):
    words = f"process {other.pid}, since 20.*: wait until"
    with pytest.raises(lock.BusyError, match=words) as refused, lock.held(tmp_path):
        pytest.fail("two at once")
    assert errors.describe(refused.value)[0] == errors.USAGE
    assert f"process {other.pid}" in lock.holder(tmp_path)
    assert (tmp_path / lock.FILE).exists()  # it is not the second's to take away


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_dead_process_left_is_taken_over_with_a_line(other, tmp_path, caplog, end):
    other.send_signal(end)
    other.wait()
    assert lock.holder(tmp_path) is None
    with caplog.at_level(logging.WARNING), lock.held(tmp_path):
        assert f"was left by process {other.pid}" in caplog.text
        assert f"process {os.getpid()}" in lock.holder(tmp_path)
    assert not (tmp_path / lock.FILE).exists()


def test_it_is_free_again_after_its_end_and_after_an_error(tmp_path, caplog):
    with pytest.raises(ZeroDivisionError), lock.held(tmp_path):
        raise ZeroDivisionError
    with lock.held(tmp_path), pytest.raises(lock.BusyError), lock.held(tmp_path):
        pytest.fail("two at once")
    assert lock.holder(tmp_path) is None
    assert not caplog.records


def test_a_folder_that_disappears_meanwhile_is_no_second_error(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with lock.held(folder):
        (folder / lock.FILE).unlink()
        folder.rmdir()
    assert not folder.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff\xfe", b"[" * 5000])
def test_what_the_file_says_may_be_anything(tmp_path, content):
    (tmp_path / lock.FILE).write_bytes(content)
    assert lock.holder(tmp_path) is None
    with lock.held(tmp_path):
        assert str(os.getpid()) in lock.holder(tmp_path)


def test_a_name_that_was_taken_away_between_opening_and_locking_is_opened_again(tmp_path, monkeypatch):
    import fcntl

    path, real, calls = tmp_path / lock.FILE, fcntl.flock, []

    def flock(handle, how):
        if not calls:
            path.unlink()  # its holder has just ended
        calls.append(how)
        return real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.held(tmp_path):
        assert len(calls) == 2
        monkeypatch.undo()
        assert lock.holder(tmp_path)


def test_who_only_looks_keeps_nobody_out(tmp_path):
    """An instant of `holder` in another process, here drawn out."""
    import fcntl

    with open(tmp_path / lock.FILE, "w") as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        timer = threading.Timer(0.1, fcntl.flock, (looked_at, fcntl.LOCK_UN))
        timer.start()
        with lock.held(tmp_path):
            assert lock.holder(tmp_path) is not None
        timer.join()
