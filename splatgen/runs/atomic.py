"""Files that are either the old one or the whole new one, also after a crash or a full disk.

Everything is written beside its destination, fsynced, renamed over it, and the folder is fsynced, so
that the new name survives a power cut. Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT)
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\.[A-Za-z0-9]+)?")  # as `replacing` makes them


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it replaces `path`, on failure it goes.

    For files that a library writes: the temporary name keeps the suffix, from which libraries guess
    the format. OSError passes through, and then `path` still is what it was.
    """
    path = Path(path)
    if not path.parent.is_dir():  # an error about the temporary name would confuse
        raise FileNotFoundError(errno.ENOENT, "no such folder; make it first", str(path.parent))
    # the stem is cut so that a name at the file system's limit still has room for the marker
    temporary = path.with_name(f".{path.stem[:80]}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        # a full disk is reported without a name, other errors with one that nobody has chosen
        if error.filename == str(temporary) or (error.filename is None and error.errno in _FULL):
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # must not hide the error that brought us here
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace a file by these bytes. Raises OSError, and leaves the file as it was."""
    with replacing(path) as temporary, open(temporary, "xb") as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace a file by this text in UTF-8, with newlines as given."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """Replace a file by indented JSON, UTF-8.

    Raises ValueError for NaN and infinity, which JSON has no words for, and TypeError for objects
    that it does not know, both before anything is written.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # a lone surrogate (undecodable byte in an argument) becomes \udcXX, which is its JSON escape too
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def sweep(folder: str | os.PathLike[str]) -> None:
    """Delete the temporary files that a killed process left in a folder that nobody else writes to.

    What can't be deleted stays: it takes room and does no other harm.
    """
    for path in Path(folder).glob(".*.tmp*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


def sync_file(path: str | os.PathLike[str]) -> None:
    """Return once the file's content is on the disk."""
    # Windows only flushes handles that may write
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Return once the folder's list of names is on the disk; does nothing where systems lack that."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems refuse to sync a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def jsonable(value: Any) -> Any:
    """JSON's types; NaN and infinity, which it lacks, become null, paths and the like become text."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return jsonable(value.tolist())
    return str(value)
