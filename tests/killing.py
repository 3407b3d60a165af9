"""Runs that kill themselves before a chosen system call, each in a fork of one warm process.

    python tests/killing.py FOLDER MOMENTS SEED SCORE PREFERENCE

Prints a JSON line a moment: which call it was, what was left, and whether resuming ended bit-equal with a run
that nobody interrupted. Not a test module: tests/test_killed.py runs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["SPLATGEN_CPU_BACKEND"] = "torch"  # no threads and no compiler before the fork
os.environ["OMP_NUM_THREADS"] = "1"

import torch

from splatgen import checkpoint, optimise, runs
from splatgen.config import (
    Config,
    DensifyOptions,
    OutputOptions,
    PSDOptions,
    SplatOptions,
    ViewOptions,
    VSDOptions,
)

CALLS = ("open", "replace", "rename", "fsync", "mkdir", "unlink", "rmdir", "truncate")


def config(score: str, preference: str) -> Config:
    return Config(
        prompt="a red cube",
        prior="toybox-mini",
        reward=("toybox-mini",),
        score=score,  # type: ignore[arg-type]
        preference=preference,  # type: ignore[arg-type]
        steps=5,
        device="cpu",
        views=ViewOptions(count=1, size=(16,)),
        splats=SplatOptions(count=40),
        densify=DensifyOptions(start=0.1, stop=0.7, rounds=2, grow=0.3, max_splats=80),
        output=OutputOptions(frames=0, size=16, checkpoint_seconds=1e-9),
        **({"vsd": VSDOptions(rank=1, lr=0.01)} if score == "vsd" else {}),
        **({"psd": PSDOptions(interval=1, t_limit=1.0)} if preference == "psd" else {}),
    )


class Fuse:
    """Counts system calls that change files; kills the process before the n-th."""

    def __init__(self, at: int | None) -> None:
        self.at, self.count, self.last = at, 0, ""

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            if name != "open" or changes_files(args, options):
                self.count += 1
                if self.count == self.at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return counted

    def arm(self) -> None:
        for name in CALLS:
            setattr(os, name, self.wrap(name, getattr(os, name)))
        import builtins

        builtins.open = self.wrap("open", builtins.open)  # type: ignore[assignment]


def changes_files(args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether an open() or os.open() may write."""
    mode = options.get("mode", args[1] if len(args) > 1 else "r")
    if isinstance(mode, int):
        return bool(mode & (os.O_WRONLY | os.O_RDWR))
    return any(letter in mode for letter in "wax+")


def forked(work: Callable[[], object]) -> int:
    """The exit status of work in a child: 0, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - a child must not go on as its parent
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fingerprint(folder: Path) -> str:
    """Hash of everything that the last checkpoint holds, and of the splats' file without its comments."""
    run = runs.open_run(folder)
    found = checkpoint.load_latest(run.checkpoints)
    digest = hashlib.sha256(json.dumps(found.state, sort_keys=True).encode())
    for part, tensors in sorted(found.parts.items()):
        for name, value in sorted(tensors.items()):
            digest.update(f"{part}/{name}{tuple(value.shape)}".encode() + value.numpy().tobytes())
    header, _, body = run.splats_ply.read_bytes().partition(b"end_header\n")
    lines = [line for line in header.split(b"\n") if not line.startswith(b"comment")]
    digest.update(b"\n".join(lines) + body)
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
    digest.update(json.dumps(kept, sort_keys=True).encode())
    return digest.hexdigest()


def start(given: Config, folder: Path, fuse: Fuse) -> None:
    fuse.arm()
    optimise.generate(given, out=folder.parent, name=folder.name, command=["test"])


def count_calls(given: Config, folder: Path) -> int:
    """System calls of a whole run."""

    def work() -> None:
        fuse = Fuse(None)
        start(given, folder, fuse)
        (folder / "calls").write_text(str(fuse.count))

    if forked(work):
        raise RuntimeError("the uninterrupted run failed")
    return int((folder / "calls").read_text())


def try_moment(given: Config, folder: Path, at: int, expected: str) -> dict[str, Any]:
    killed = forked(lambda: start(given, folder, Fuse(at)))
    had = sorted(p.name for p in folder.rglob("step-*")) if folder.exists() else []
    if not (folder / "run.json").is_file():  # killed before there was a run
        shutil.rmtree(folder, ignore_errors=True)
        again = forked(lambda: start(given, folder, Fuse(None)))
    else:
        again = forked(lambda: optimise.resume(folder, command=["test"]))
    same = again == 0 and fingerprint(folder) == expected
    return {"at": at, "killed": killed, "had": had, "again": again, "same": same}


def main() -> None:
    folder, moments, seed, score, preference = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    torch.set_num_threads(1)
    given = config(score, preference)
    optimise.generate(given, out=folder / "warm", command=["test"])  # imports what a run imports
    total = count_calls(given, folder / "whole")
    expected = fingerprint(folder / "whole")
    chosen = random.Random(seed).sample(range(1, total + 1), min(moments, total))
    print(json.dumps({"calls": total}), flush=True)
    for at in sorted(chosen):
        print(json.dumps(try_moment(given, folder / f"at-{at}", at, expected)), flush=True)


if __name__ == "__main__":
    main()
