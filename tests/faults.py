"""What tests of broken disks, kills and interrupts share. Not a test module."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from splatgen.runs import checkpoint
from splatgen.runs.run_folder import Run


def only(folder: Path) -> Path:
    """The one folder in a folder."""
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


def refused(code: int, out: str, err: str, expected: int = 6) -> str:
    """The one line of an error; a second one may say where the run is."""
    first, *more = err.splitlines()
    assert (code, out) == (expected, ""), (code, out, err)
    assert first.startswith("splatgen: error: "), err
    assert len(more) <= 1, err
    assert all(line.startswith("splatgen: the run is in ") for line in more), err
    return first


def fingerprint(folder: Path) -> str:
    """Hash of all that a run or a sweep leaves but dates, times, memory, ids, and its film."""
    digest = hashlib.sha256()
    if (folder / "sweep.json").is_file():
        content = json.loads((folder / "sweep.json").read_text())
        digest.update(canonical({key: content[key] for key in ("complete", "prompts", "seeds", "methods")}))
        rows = [json.loads(line) for line in (folder / "sweep.jsonl").read_text().splitlines()]
        for row in sorted({row["folder"]: row for row in rows}.values(), key=lambda row: row["folder"]):
            row["numbers"].pop("cost/seconds", None)
            digest.update(canonical(row | {"memory_mb": None}) + _run(folder / row["folder"]))
        digest.update((folder / "table.md").read_bytes())
        digest.update((folder / "sheet.png").read_bytes())
    else:
        digest.update(_run(folder))
    return digest.hexdigest()


def canonical(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True).encode()


def _run(folder: Path) -> bytes:
    run = Run(folder=folder)
    found = checkpoint.load_latest(run.checkpoints)
    digest = hashlib.sha256(canonical([found.step, found.state]))
    for part, tensors in sorted(found.parts.items()):
        for name, value in sorted(tensors.items()):
            digest.update(f"{part}/{name}{tuple(value.shape)}".encode() + value.numpy().tobytes())
    data = json.loads(run.run_json.read_text())
    digest.update(canonical([data[key] for key in ("status", "steps", "splats", "rewards")]))
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    digest.update(canonical([{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]))
    for name in ("config.json", "steering.jsonl", "preview.png", "image.png", "source.png"):
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    for name in ("splats.ply", "source.ply"):
        if (folder / name).is_file():
            header, _, body = (folder / name).read_bytes().partition(b"end_header\n")
            lines = [line for line in header.split(b"\n") if not line.startswith(b"comment")]
            digest.update(b"\n".join([name.encode(), *lines]) + body)
    return digest.digest()
