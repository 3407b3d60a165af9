"""Files of prompts: text, CSV, JSON and JSONL, those of T3Bench and GPTEval3D too. No torch here.

.txt    a prompt a line; empty lines are passed over (T3Bench)
.csv    the column `prompt`, or the only one
.json   a list of texts, of objects with a `prompt`, or groups of such lists by name (GPTEval3D)
.jsonl  a text or such an object a line
"""

from __future__ import annotations

import csv
import importlib.resources
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MOST_BYTES = 2**22
MOST_PROMPTS = 10_000
NAMES = ("prompt", "caption", "text")  # of a column or a key
SUFFIXES = (".txt", ".csv", ".json", ".jsonl")


def included() -> dict[str, Path]:
    """Name to file of every set of prompts that is installed."""
    folder = Path(str(importlib.resources.files("splatgen_configs"))) / "prompts"
    return {path.stem: path for path in sorted(folder.glob("*.txt"))}


def find(given: str) -> Path:
    """The file of a path or of an included set's name; ValueError where there is none."""
    path, sets = Path(given).expanduser(), included()
    if not path.exists() and given in sets:
        return sets[given]
    if not path.is_file():
        why = "is a folder" if path.is_dir() else "does not exist"
        advice = f"give a file of prompts, or one of the sets here: {', '.join(sets)}"
        raise ValueError(f"{given[:200]!r} {why}: {advice}; for one prompt: splatgen compare")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} has none of the suffixes {', '.join(SUFFIXES)}: rename it to what it is")
    return path


def read_prompts(path: Path) -> tuple[list[str], list[str]]:
    """Prompts in their order, each once, and those that were there again; ValueError for what holds none."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(
            f"{path} has {size / 2**20:.0f} MB: a file of prompts has {MOST_BYTES >> 20} at most"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: save it as that") from error
    try:
        found = list(_READERS[path.suffix.lower()](text))
    except (ValueError, RecursionError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from error
    return distinct(found, str(path))


def distinct(given: Iterable[str], where: str) -> tuple[list[str], list[str]]:
    """Prompts in their order, each once, and those that were there again; ValueError for none or too many."""
    found = [prompt.strip() for prompt in given]
    counts = Counter(prompt for prompt in found if prompt)
    if not counts:
        raise ValueError(f"{where} holds no prompt: give at least one")
    if len(counts) > MOST_PROMPTS:
        raise ValueError(f"{where} holds {len(counts):,} prompts: take {MOST_PROMPTS:,} at most")
    return list(counts), [prompt for prompt, count in counts.items() if count > 1]


def _of_text(text: str) -> Iterator[str]:
    yield from text.splitlines()


def _of_csv(text: str) -> Iterator[str]:
    rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    column = next((head.index(name) for name in NAMES if name in head), None)
    if column is None and len(head) > 1:
        raise ValueError(f"no column is named prompt, of {', '.join(head)[:200]}: name one so")
    for number, row in enumerate(rows[column is not None :], 1):
        if len(row) <= (column or 0):
            raise ValueError(f"row {number} has {len(row)} cells: it has no prompt")
        yield row[column or 0]


def _of_json(text: str) -> Iterator[str]:
    yield from _of_any(json.loads(text), "the file")


def _of_lines(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON ({error})") from error
            yield _of_entry(entry, f"line {number}")


def _of_any(data: Any, where: str) -> Iterator[str]:
    """A list of entries, or groups of them by name; an object under a name may be a prompt's own."""
    if isinstance(data, dict):
        for name, group in data.items():
            if isinstance(group, list):
                yield from _of_any(group, f"{name[:40]!r}")
            else:
                yield _of_entry(group, f"{name[:40]!r}")
    elif isinstance(data, list):
        for number, entry in enumerate(data, 1):
            yield _of_entry(entry, f"entry {number} of {where}")
    else:
        raise ValueError(f"{where} holds a {type(data).__name__}: write a list of prompts")


def _of_entry(entry: Any, where: str) -> str:
    if isinstance(entry, dict):
        entry = next((entry[name] for name in NAMES if name in entry), None)
    if not isinstance(entry, str):
        raise ValueError(f"{where} is no text and has no field `prompt`: add one")
    return entry


_READERS = {".txt": _of_text, ".csv": _of_csv, ".json": _of_json, ".jsonl": _of_lines}
