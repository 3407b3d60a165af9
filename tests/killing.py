"""Processes that signal themselves before a chosen system call, each a fork of one warm process.

    python tests/killing.py FOLDER SCENARIO...

SCENARIO is NAME:MOMENTS, of those below. Prints a JSON line a moment: which system call it was, how the
process ended, what was left, and whether going on ended bit-equal with what nobody interrupted. A write
counts as two calls, so that half of it can be on the disk. Not a test module: tests/test_killed.py runs it.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import functools
import gc
import io
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["SPLATGEN_CPU_BACKEND"] = "torch"  # no threads and no compiler before the fork
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from faults import fingerprint, only

from splatgen import cli
from splatgen.config import Config, ImageConfig, from_dict, merge
from splatgen.config.methods import slots
from splatgen.loop import image_run, object_run, resident_models
from splatgen.loop.snapshot import Channel, Command, Snapshot
from splatgen.loop.step import Models, assemble, load_models
from splatgen.runs import checkpoint, run_folder, steering
from splatgen.runs.rng import rng
from splatgen.scene.splats import random_ball
from splatgen.sweeps.ledger import make_folder
from splatgen.sweeps.plan import line_up
from splatgen.sweeps.sweep import Alone, Callbacks, carry_out
from splatgen.sweeps.worker import Worker

SEED = 7  # of the moments
LOADING = 0  # the moment at which the networks are loaded, before all system calls
CALLS = ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir", "truncate")  # and open and write
INTERRUPTS = {"int": (signal.SIGINT,), "int-int": (signal.SIGINT, signal.SIGINT), "term": (signal.SIGTERM,)}


# What is killed


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Something to begin in an empty folder, and how a user goes on with the folder that was made there."""

    begin: Callable[[Path], object]
    go_on: Callable[[Path], object]
    begun: Callable[[Path], bool]  # whether going on is possible
    signals: tuple[int, ...] = (signal.SIGKILL,)
    ends: tuple[int, ...] = (-signal.SIGKILL,)  # how the process may end


def config(**change: Any) -> Config:
    base = {
        "prompt": "a red cube",
        "prior": "toybox-mini",
        "reward": ["toybox-mini"],
        "steps": 3,
        "device": "cpu",
        "views": {"count": 1, "size": [16]},
        "splats": {"count": 40},
        "densify": {"start": 0.1, "stop": 0.7, "rounds": 2, "grow": 0.3, "max_splats": 80},
        "output": {"frames": 0, "size": 16, "checkpoint_seconds": 1e-9},
    }
    return from_dict({**base, **change})


def generation(given: Config) -> Scenario:
    return Scenario(
        begin=lambda out: object_run.generate(given, out=out, command=["test"]),
        go_on=lambda folder: object_run.resume(folder, command=["test"]),
        begun=lambda folder: (folder / "run.json").is_file(),
    )


def edition() -> Scenario:
    ball = random_ball(rng(1, 0, "test"), count=40, radius=0.5, scale=0.1, opacity=0.5)
    given = config(source="a red cube", prompt="a blue cube")
    return Scenario(
        begin=lambda out: object_run.edit(given, ball, out=out, command=["test"]),
        go_on=lambda folder: object_run.resume(folder, command=["test"]),
        begun=lambda folder: (folder / "run.json").is_file(),
    )


def picture() -> Scenario:
    given = merge(
        ImageConfig(),
        {
            "prompt": "a red cube",
            "prior": "toybox-mini",
            "reward": ["toybox-mini"],
            "score": "vsd",
            "vsd": {"rank": 1, "lr": 0.01},
            "steps": 3,
            "device": "cpu",
            "image": {"checkpoint_seconds": 1e-9},
        },
    )
    return Scenario(
        begin=lambda out: image_run.generate(given, out=out, command=["test"]),
        go_on=lambda folder: image_run.resume(folder, command=["test"]),
        begun=lambda folder: (folder / "run.json").is_file(),
    )


def comparison() -> Scenario:
    base = config(steps=2)
    plan = line_up(["a red cube"], {name: merge(base, slots(name)) for name in ("sds", "rewardsds")}, [3])
    watch = Callbacks(begin=lambda _: lambda _: None, end=lambda _: None, should_stop=lambda: False)

    def sweep(folder: Path) -> None:
        crew = Alone(worker=Worker(["test"], truth=False))
        carry_out(plan, folder, crew, command=["test"], watch=watch)

    return Scenario(
        begin=lambda out: sweep(make_folder(out, "compare", plan.prompts)),
        go_on=sweep,
        begun=lambda folder: (folder / "sweep.json").is_file(),
    )


class Hand(Channel):
    """A user who changes settings before given steps, and does not repeat what is written down already."""

    def __init__(
        self, plan: dict[int, tuple[str, float]], step: int, known: list[steering.SettingChange]
    ) -> None:
        super().__init__(interval=0.0)
        done = {change.step for change in known}
        self.plan = {at: what for at, what in plan.items() if at not in done}
        self.ask(step)

    def ask(self, step: int) -> None:
        if step in self.plan:
            setting, value = self.plan.pop(step)
            self.send(Command(kind="set", setting=setting, value=value))

    def put(self, snapshot: Snapshot) -> None:
        super().put(snapshot)
        self.take()
        self.ask(snapshot.step)


def steered() -> Scenario:
    plan = {1: ("guidance.scale", 4.0), 2: ("lr.factor", 0.5)}
    given = config()

    def go_on(folder: Path) -> None:
        names = sorted(path.name for path in folder.glob("checkpoints/step-*"))
        step = checkpoint.load_latest(folder / "checkpoints").step if names else 0
        hand = Hand(plan, step, steering.read(folder / steering.FILE))
        object_run.resume(folder, command=["test"], channel=hand)

    return Scenario(
        begin=lambda out: object_run.generate(given, out=out, command=["test"], channel=Hand(plan, 0, [])),
        go_on=go_on,
        begun=lambda folder: (folder / "run.json").is_file(),
    )


def command_line(kind: str) -> Scenario:
    """`splatgen generate` that gets signals, and `splatgen resume`."""
    words = "--prior toybox-mini --reward toybox-mini --device cpu --steps 3 --views.count 1 --views.size 16"
    words += " --splats.count 40 --output.frames 0 --output.size 16 --output.checkpoint-seconds 1e-9 --quiet"
    argv = ["generate", "a red cube", *words.split(), "--out"]

    def resume(folder: Path) -> None:
        if cli.main(["resume", str(folder), "--quiet"]) != 0:
            raise RuntimeError("resume failed")

    code = 128 + INTERRUPTS[kind][0]
    return Scenario(
        begin=lambda out: sys.exit(cli.main([*argv, str(out)])),
        go_on=resume,
        begun=lambda folder: (folder / "run.json").is_file(),
        signals=INTERRUPTS[kind],
        ends=(code,) if kind == "int-int" else (code, 0),  # 0: it came after the last step
    )


SCENARIOS: dict[str, Callable[[], Scenario]] = {
    "sds": lambda: generation(config()),
    "vsd+psd": lambda: generation(
        config(
            score="vsd",
            preference="psd",
            vsd={"rank": 1, "lr": 0.01},
            psd={"interval": 1, "t_limit": 1.0},
        )
    ),
    "stages": lambda: generation(
        config(
            stages=[
                {"share": 0.34, "guidance": {"scale": 3.0}},
                {"share": 0.66, "score": "vsd", "vsd": {"rank": 1, "lr": 0.01}},
            ]
        )
    ),
    "steered": steered,
    "edit": edition,
    "image": picture,
    "compare": comparison,
    **{kind: functools.partial(command_line, kind) for kind in INTERRUPTS},
}


# How


@dataclass
class Fuse:
    """Counts system calls that change files; signals its own process before the n-th of them."""

    at: int | None = None
    signals: tuple[int, ...] = ()
    count: int = 0
    open: Callable[..., Any] = field(default=builtins.open)

    def tick(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.fire()

    def fire(self) -> None:
        for number in self.signals:
            os.kill(os.getpid(), number)

    def while_loading(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def loading(*args: Any) -> Any:
            self.fire()
            return load(*args)

        return loading

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **options: Any) -> Any:
            self.tick()
            return call(*args, **options)

        return counting

    def opened(self, *args: Any, **options: Any) -> Any:
        if not changes_files(args, options):
            return self.open(*args, **options)
        self.tick()
        return Halves(self.open(*args, **options), self.tick)

    def arm(self) -> None:
        os_open = os.open
        if self.at == LOADING:
            module: Any = resident_models
            module.load_models = self.while_loading(module.load_models)
        for name in CALLS:
            setattr(os, name, self.counted(getattr(os, name)))
        os.open = lambda *a, **k: (self.counted(os_open) if changes_files(a, k) else os_open)(*a, **k)
        builtins.open = self.opened  # type: ignore[assignment]


class Halves:
    """A file whose every write can be cut in the middle."""

    def __init__(self, file: io.IOBase, tick: Callable[[], None]) -> None:
        self.file, self.tick = file, tick

    def write(self, data: Any) -> int:
        half = len(data) // 2
        self.file.write(data[:half])
        self.file.flush()
        self.tick()
        return half + int(self.file.write(data[half:]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Halves:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def changes_files(args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether an open() or os.open() may write."""
    mode = options.get("mode", args[1] if len(args) > 1 else "r")
    if isinstance(mode, int):
        return bool(mode & (os.O_WRONLY | os.O_RDWR))
    return any(letter in mode for letter in "wax+")


def forked(work: Callable[[], object], log: Path) -> int:
    """The exit status of work in a child, or minus the signal that ended it; its stderr goes into log."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            os.dup2(2, 1)
            work()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException as error:  # noqa: BLE001 - a child must not go on as its parent
            print(f"Traceback: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def begin(scenario: Scenario, out: Path, fuse: Fuse) -> None:
    fuse.arm()
    scenario.begin(out)


def begin_and_count(scenario: Scenario, out: Path) -> None:
    """Begin with nothing to stop it, and leave the number of its system calls beside its folder."""
    fuse = Fuse()
    try:
        begin(scenario, out, fuse)
    finally:
        out.with_suffix(".calls").write_text(str(fuse.count))


def try_moment(scenario: Scenario, out: Path, at: int, expected: str) -> dict[str, Any]:
    """What happened, as a line of the output."""
    out.mkdir()
    log = out.with_suffix(".log")
    code = forked(functools.partial(begin, scenario, out, Fuse(at, scenario.signals)), log)
    had = len([*out.rglob("step-*")])
    run_json = next(out.glob("*/run.json"), None)
    status = json.loads(run_json.read_text())["status"] if run_json else None
    goes_on = any(out.iterdir()) and scenario.begun(only(out))
    if goes_on:
        scenario.go_on(only(out))
    else:
        shutil.rmtree(out)
        out.mkdir()
        forked(functools.partial(scenario.begin, out), out.with_suffix(".again"))
    found = {
        "at": at,
        "code": code,
        "expected": code in scenario.ends,
        "had": had,
        "status": status,
        "goes_on": goes_on,
        "same": fingerprint(only(out)) == expected,
        "left": [path.name for path in out.rglob(".*.tmp*")],
        "err": log.read_text(),
    }
    shutil.rmtree(out)
    return found


def try_moments(name: str, folder: Path, most: int) -> None:
    """Print a line for each of so many moments of a scenario, chosen at random."""
    scenario, warm, whole = SCENARIOS[name](), folder / "warm", folder / "whole"
    for path in (folder, warm, whole):
        path.mkdir()
    with contextlib.suppress(SystemExit):
        scenario.begin(warm)  # imports what it imports
    if forked(lambda: begin_and_count(scenario, whole), folder / "whole.log"):
        raise RuntimeError(f"{name}, uninterrupted: {(folder / 'whole.log').read_text()}")
    expected, calls = fingerprint(only(whole)), int((folder / "whole.calls").read_text())
    if fingerprint(only(warm)) != expected:
        raise RuntimeError(f"{name} is not the same twice")
    gc.freeze()  # a child that collects garbage copies every page
    chosen = random.Random(SEED).sample(range(1, calls + 1), min(most, calls))
    for at in sorted(chosen if scenario.signals == (signal.SIGKILL,) else [LOADING, *chosen]):
        found = try_moment(scenario, folder / f"at-{at}", at, expected)
        print(json.dumps({"scenario": name, "calls": calls, **found}), file=sys.__stdout__, flush=True)


def share_networks() -> None:
    """Load networks once: it takes longer than the steps of a run. Scores and preferences are made anew."""
    networks = load_models(config(), "cpu")

    def load(given: Config, *_: Any) -> Models:
        ensemble = dataclasses.replace(networks.ensemble, options=given.reward_options)
        return assemble(given, networks.prior, ensemble, networks.holdouts)

    modules: tuple[Any, ...] = (object_run, image_run, resident_models)
    for module in modules:
        module.load_models = load


def main() -> None:
    sys.stdout = sys.stderr  # of command lines
    torch.set_num_threads(1)
    setattr(os, "fsync", lambda _: None)  # noqa: B010 - the kernel outlives a kill; test_atomic.py sees that it is called
    run_folder._git_hash = lambda: None  # a process of its own
    share_networks()
    for name, _, most in (word.partition(":") for word in sys.argv[2:]):
        try_moments(name, Path(sys.argv[1]) / name, int(most))


if __name__ == "__main__":
    main()
