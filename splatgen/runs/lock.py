"""One process at a time in a run folder. Standard library only.

The lock is the kernel's (flock) on a file in the folder, so that it ends with its process, however that ends.
The file says who holds it. Windows has no flock, and some network file systems refuse it: there nothing keeps
two processes apart.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

FILE = "run.lock"
PATIENCE = 0.5  # seconds: who only looks at a lock (`holder`) holds it for an instant

_log = logging.getLogger(__name__)


class BusyError(ValueError):
    """Another process works in a run folder."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within, no other process works in a run folder; raises BusyError when one does, OSError for the disk.

    What a process left that died is taken over, which a warning says.
    """
    if sys.platform == "win32":
        yield
        return
    path = folder / FILE
    handle = _locked(path)
    try:
        before = os.read(handle, 4096)
        if before:
            _log.warning("%s was left by %s, which is gone: going on", folder, _who(before))
        os.ftruncate(handle, 0)
        about = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        }
        os.pwrite(handle, json.dumps(about).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone; must not hide what brought us here
            path.unlink()
        os.close(handle)


def holder(folder: Path) -> str | None:
    """Who works in a run folder, in words; None when nobody does."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        handle = os.open(folder / FILE, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _who(os.read(handle, 4096))
    except OSError:
        return None
    finally:
        os.close(handle)
    return None


def _locked(path: Path) -> int:
    """A handle of the file that holds the lock, and that is still the file of that name."""
    import fcntl

    latest = time.monotonic() + PATIENCE
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(handle, path):
                return handle
        except BlockingIOError:
            who = _who(os.read(handle, 4096))
            os.close(handle)
            if time.monotonic() < latest:
                time.sleep(0.01)
                continue
            raise BusyError(
                f"{path.parent} is at work in {who}: wait until it has ended, or stop it"
            ) from None
        except OSError as error:
            _log.warning("%s cannot be locked (%s): nothing keeps a second process out", path, error.strerror)
            return handle
        os.close(handle)  # its holder ended between the two calls, and took the name away


def _is(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _who(content: bytes) -> str:
    """The process that a lock file names."""
    try:
        match json.loads(content):
            case {"pid": int(pid), "host": str(host), "since": str(since)}:
                there = "" if host == socket.gethostname() else f" on {host[:80]}"
                return f"process {pid}{there}, since {since[:40]}"
    except (ValueError, RecursionError):
        pass
    return "another process"
