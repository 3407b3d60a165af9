"""metrics.jsonl: one JSON object a line, readable after a crash. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splatgen.runs import atomic


class Metrics:
    """Append-only writer of metrics.jsonl: one JSON object a line, on its way to the disk at once."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file for appending; what a crash left of a last line is cut off. Raises OSError."""
        # unbuffered: what a full disk refused must not come back when the file is closed
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the run
        _cut_torn_line(Path(path))

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; NaN and infinity become null. Raises OSError."""
        text = json.dumps(atomic.jsonable(row), ensure_ascii=False, allow_nan=False) + "\n"
        data = text.encode("utf-8", "backslashreplace")
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            error.filename = self._file.name  # a full disk is reported without one
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All rows; a last line that was cut short is left out.

    Raises ValueError naming the line for damage anywhere else, OSError when there is no file.
    A row's step, where it has one, is a number.
    """
    lines = Path(path).read_bytes().split(b"\n")[:-1]  # what follows the last newline is empty or torn
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # a power cut can leave zeros, too
                break
            raise ValueError(f"{os.fspath(path)!r} line {number} is not JSON ({error}): remove it") from error
        if not isinstance(row, dict):
            raise ValueError(f"{os.fspath(path)!r} line {number} is no JSON object: remove it")
        if not isinstance(row.get("step", 0), int | float):
            raise ValueError(f"{os.fspath(path)!r} line {number} has a step that is no number: remove it")
        rows.append(row)
    return rows


def rewind_metrics(path: str | os.PathLike[str], step: int) -> None:
    """Drop, atomically, the rows after a step, which a run resumed from there writes again.

    A run that was killed before its first step has no file yet.
    """
    if not Path(path).exists():
        return
    rows = [row for row in read_metrics(path) if row.get("step", step) <= step]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    atomic.write_bytes(path, text.encode("utf-8", "backslashreplace"))


def _cut_torn_line(path: Path) -> None:
    with open(path, "rb+") as file:
        whole = file.read().rfind(b"\n") + 1
        if whole < file.tell():
            file.truncate(whole)
