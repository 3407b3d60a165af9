"""Finished runs measured by the same metrics on the same views: a row a run.

Rows go to a .jsonl, or to a .parquet where pyarrow is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splatgen import formats
from splatgen.config import from_dict, read_file
from splatgen.runs import atomic, run_folder
from splatgen.runs.run_folder import Run
from splatgen.sweeps.ledger import FILE, read_sweep
from splatgen.sweeps.metrics import Metrics, Subject
from splatgen.sweeps.views import VIEWS, pictures

DEPTH = 3  # folders below the one given


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run to be measured, under the name of what made it."""

    folder: Path
    method: str


Row = dict[str, Any]  # run, prompt, method, seed, status, views, and numbers by name


def entries(given: Sequence[Path]) -> list[Entry]:
    """The runs in folders: one itself, those of a sweep, those below. ValueError where there are none."""
    found: list[Entry] = []
    for folder in given:
        if Run(folder=folder).run_json.is_file():
            here = [Entry(folder=folder, method=_method(folder))]
        elif (folder / FILE).is_file():
            outcomes = read_sweep(folder).outcomes
            here = [Entry(folder=folder / o.folder, method=o.method) for o in outcomes]
            here = [entry for entry in here if Run(folder=entry.folder).run_json.is_file()]
        else:
            here = [Entry(folder=path, method=_method(path)) for path in _below(folder)]
        if not here:
            why = (
                "holds no run"
                if folder.is_dir()
                else "does not exist"
                if not folder.exists()
                else "is a file"
            )
            raise ValueError(f"{folder} {why}: give run folders, or folders that hold some")
        found += here
    return list({entry.folder.resolve(): entry for entry in found}.values())


def _below(folder: Path) -> list[Path]:
    """Run folders at most DEPTH folders down."""
    patterns = ("/".join(["*"] * depth) for depth in range(1, DEPTH + 1))
    return sorted(p.parent for pattern in patterns for p in folder.glob(f"{pattern}/run.json"))


def _method(folder: Path) -> str:
    """What a run's own settings call its method."""
    try:
        config = from_dict(read_file(Run(folder=folder).config_json))
    except ValueError:
        return "unknown"
    return f"{config.score}+{config.preference}"


def evaluate(
    chosen: Sequence[Entry],
    names: Sequence[str],
    views: str,
    size: int,
    metrics: Metrics,
    tell: Callable[[Row], None],
) -> Iterator[Row]:
    """A row a run. Runs that came to no end have only their status; those of images are left out."""
    for entry in chosen:
        data = run_folder.read(Run(folder=entry.folder))
        if data.get("kind") == "image":
            continue
        row: Row = {
            "run": str(entry.folder),
            "prompt": data.get("prompt"),
            "method": entry.method,
            "seed": data.get("seed"),
            "status": data.get("status"),
            "views": views,
        }
        run = Run(folder=entry.folder)
        if data.get("status") == "done" and run.splats_ply.is_file():
            row |= numbers(run, names, views, size, metrics)
        tell(row)
        yield row


def numbers(run: Run, names: Sequence[str], views: str, size: int, metrics: Metrics) -> dict[str, float]:
    """What every metric says of a finished run."""
    config, splats = from_dict(read_file(run.config_json)), formats.load(run.splats_ply)
    cameras = VIEWS[views](size)
    subject = Subject(
        run=run, config=config, splats=splats, cameras=cameras, images=pictures(splats, cameras)
    )
    found: dict[str, float] = {}
    for name in names:
        found |= metrics.measure(name, subject)
    return found


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Rows as JSONL, or as Parquet by the suffix (ImportError without pyarrow)."""
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        columns = list(dict.fromkeys(name for row in rows for name in row))
        data = {name: [row.get(name) for row in rows] for name in columns}
        with atomic.replacing(path) as temporary:
            pyarrow.parquet.write_table(pyarrow.table(data), temporary)
        return
    text = "".join(json.dumps(atomic.jsonable(row), ensure_ascii=False) + "\n" for row in rows)
    atomic.write_text(path, text)
