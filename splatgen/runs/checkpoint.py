"""Checkpoints that survive a kill at any moment: safetensors and JSON, verified on loading.

    checkpoints/
        latest                  the name of the newest folder
        step-000123/            written as .tmp-..., fsynced, renamed
            splats.safetensors  one file a part
            state.json          small state, and the size and SHA-256 of each part and of itself

Nothing is ever unpickled, and a name found in a file becomes a path only when it has the form above.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from splatgen.runs import atomic

SPARE = 2**20  # bytes of headers, state and folders
KEPT = 2  # the newest, and the one before in case the newest is damaged
_STEP = re.compile(r"step-(\d{6,18})")
_STEP_OR_OLD = re.compile(r"step-(\d{6,18})(\.old)?")
_PART = re.compile(r"[a-z_]+\.safetensors")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What `save` was given."""

    step: int
    parts: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save(
    folder: str | os.PathLike[str],
    step: int,
    parts: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> Path:
    """Write `folder`/step-000123 and make it the latest; the one before stays, others are deleted.

    Tensors of any device, layout and type; parts are named by a-z and underscores. state is JSON
    (`pack` turns optimisers into both). Checkpoints of later steps, left over from before a resume,
    are deleted too. Raises ValueError for names or a state that can't be written and OSError for the
    disk; what was the latest then still loads.
    """
    folder = Path(folder)
    target = folder / _name(step)
    for name in parts:
        if not _PART.fullmatch(f"{name}.safetensors"):
            raise ValueError(f"no checkpoint part can be called {name!r}: use a-z and underscores")
    text = _canonical({"step": step, "state": state})  # before anything is written: NaN raises here
    folder.mkdir(parents=True, exist_ok=True)
    _check_space(folder, parts)
    _sweep(folder)
    temporary = folder / f".tmp-{target.name}-{secrets.token_hex(4)}"
    try:
        temporary.mkdir()
        files = {name: _write_part(temporary / f"{name}.safetensors", parts[name]) for name in parts}
        content = {**json.loads(text), "parts": files}
        atomic.write_json(temporary / "state.json", {**content, "sha256": _digest(content)})
        atomic.sync_folder(temporary)
        _put(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    atomic.write_text(folder / "latest", target.name + "\n")
    _prune(folder, step)
    return target


def _check_space(folder: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise OSError when a checkpoint would not fit: better now than half-way."""
    size = sum(z.numel() * z.element_size() for tensors in parts.values() for z in tensors.values())
    free = shutil.disk_usage(folder).free
    if free < size + SPARE:
        room, wanted = free / 2**20, (size + SPARE) / 2**20
        text = f"{room:.1f} MB free, a checkpoint takes {wanted:.1f} MB; free some space"
        raise OSError(errno.ENOSPC, text, str(folder))


def load_latest(folder: str | os.PathLike[str]) -> Checkpoint:
    """The newest checkpoint that is whole, on the CPU; damaged ones are skipped with a warning.

    Raises FileNotFoundError when there is none, ValueError when all are damaged, other OSErrors where the
    folder can't be read or is none.
    """
    folder = Path(folder)
    candidates = _candidates(folder)
    if not candidates:
        raise FileNotFoundError(f"{str(folder)!r} holds no checkpoint: start the run anew")
    reasons = []
    for candidate in candidates:
        try:
            checkpoint = _load(candidate)
        except (OSError, ValueError) as error:
            reasons.append(f"{candidate.name}: {error}")
            _log.warning("checkpoint %s is skipped: %s", candidate, error)
        else:
            return checkpoint
    raise ValueError(f"no checkpoint in {str(folder)!r} is usable ({'; '.join(reasons)}): start the run anew")


def expect(found: Checkpoint, folder: str | os.PathLike[str], parts: Sequence[str]) -> None:
    """Raise ValueError unless a checkpoint has these parts: it may be of another kind of run."""
    for part in parts:
        if part not in found.parts:
            raise ValueError(
                f"the checkpoint in {os.fspath(folder)!r} has no {part!r}: it is of another kind of run; put "
                "the run's own back, or start it anew"
            )


@contextlib.contextmanager
def explained(folder: str | os.PathLike[str]) -> Iterator[None]:
    """What goes wrong with a state that is sound but not this run's, as a ValueError of one line."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"the checkpoint in {os.fspath(folder)!r} is of an earlier version, or of another run "
            f"({type(error).__name__}: {' '.join(str(error).split())[:120]}): start the run anew"
        ) from error


def _name(step: int) -> str:
    if not 0 <= step < 10**18:
        raise ValueError(f"no checkpoint can be of step {step}: use a step from 0")
    return f"step-{step:06d}"


def _canonical(data: Mapping[str, Any]) -> str:
    try:
        return json.dumps(data, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the state is not JSON ({error}): use packing.pack on it") from error


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _write_part(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    # clones, because safetensors refuses tensors that share memory or are not contiguous
    plain = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    data = safetensors.torch.save(plain)
    atomic.write_bytes(path, data)
    return {"file": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _put(temporary: Path, target: Path) -> None:
    """Rename a finished folder to its name; a folder of that name stays loadable as .old meanwhile."""
    old = target.with_name(target.name + ".old")
    if target.exists():
        if old.exists():
            shutil.rmtree(old)
        os.rename(target, old)
    os.rename(temporary, target)
    atomic.sync_folder(target.parent)


def _sweep(folder: Path) -> None:
    """Delete what a killed save left: only one process writes to a run."""
    for path in [*folder.glob(".tmp-*"), *folder.glob(".latest.*.tmp")]:
        _delete(path)


def _prune(folder: Path, step: int) -> None:
    """Keep this step and the newest before it that looks whole."""
    kept = [folder / _name(step)]
    for path in _scan(folder):
        if len(kept) < KEPT and _order(path)[0] < step:
            try:
                _read_state(path)
            except (OSError, ValueError) as error:
                _log.warning("checkpoint %s is deleted: %s", path, error)
            else:
                kept.append(path)
    for path in _scan(folder):
        if path not in kept:
            _delete(path)


def _delete(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:  # the new checkpoint is safe, so this is no reason to stop the run
        _log.warning("could not delete %s (%s): delete it yourself", path, error)


def _order(path: Path) -> tuple[int, bool]:
    match = _STEP_OR_OLD.fullmatch(path.name)
    assert match is not None
    return int(match[1]), match[2] is None


def _scan(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [p for p in folder.iterdir() if _STEP_OR_OLD.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=_order, reverse=True)


def _candidates(folder: Path) -> list[Path]:
    """Checkpoint folders in the order in which to try them: the one named by `latest` first."""
    if not folder.exists():
        return []
    found = _scan(folder)
    try:
        with open(folder / "latest", "rb") as file:
            name = file.read(64).decode("utf-8", "replace").strip()
    except OSError as error:
        if found:
            _log.warning("%s can't be read (%s): the newest checkpoint is tried", folder / "latest", error)
        return found
    named = folder / name if _STEP.fullmatch(name) else None
    if named not in found:
        _log.warning("%s names %r, no checkpoint: the newest is tried", folder / "latest", name)
        return found
    return [named, *(p for p in found if p != named)]


def _read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint, with itself and the sizes of the parts verified."""
    try:
        content = json.loads((path / "state.json").read_bytes())
    except RecursionError as error:
        raise ValueError("its state.json is nested too deeply") from error
    match content:
        case {"step": int(step), "state": dict(), "parts": dict(parts), "sha256": str(digest)}:
            del content["sha256"]
        case _:
            raise ValueError("its state.json lacks step, state, parts or sha256")
    if _digest(content) != digest:
        raise ValueError("its state.json does not match its own hash")
    if step != _order(path)[0]:
        raise ValueError(f"its state.json is of step {step}")
    for name, part in parts.items():
        match part:
            case {"file": str(file), "bytes": int(size), "sha256": str()} if _PART.fullmatch(file):
                found = (path / file).stat().st_size
            case _:
                raise ValueError(f"its state.json has a malformed part {name[:40]!r}")
        if found != size:
            raise ValueError(f"{file} has {found} bytes instead of {size}")
    return dict(content)


def _load(path: Path) -> Checkpoint:
    content = _read_state(path)
    parts = {}
    for name, part in content["parts"].items():
        data = (path / part["file"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != part["sha256"]:
            raise ValueError(f"{part['file']} does not match its hash")
        try:
            parts[name] = safetensors.torch.load(data)
        except SafetensorError as error:
            raise ValueError(f"{part['file']} is not safetensors ({error})") from error
    return Checkpoint(step=content["step"], parts=parts, state=content["state"])
