"""Sweeps whose workers, nodes and drivers are killed, under a real Ray on loopback; what a task costs there.

    python benchmarks/sweep_faults.py --out benchmarks/results/sweep-faults-DATE-cpu.json
    python benchmarks/sweep_faults.py --kills 1 --tasks 20 --runs 2          a quick look

Each kill comes at a random moment of a sweep of the miniature prior; afterwards the table must be that of a
sweep that nobody disturbed, byte for byte, and no process may be left. Then the overhead of a task that has
nothing to do, with the memory of the driver over all of them, and runs a minute without Ray, with one worker
and with two. Needs Ray (pip install 'splatgen[ray]').
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tiny_sweep

from splatgen.runs.machine import machine_name
from splatgen.runs.run_folder import peak_memory_mb
from splatgen.sweeps.fleet import RAY, RAY_ALONE, Fleet, FleetOptions
from splatgen.sweeps.ledger import TABLE, make_folder, read_rows, read_sweep
from splatgen.sweeps.plan import Plan
from splatgen.sweeps.sweep import Callbacks

KINDS = ("worker", "node", "driver")
STEPS = 50  # of a run of the throughput
MOST_DELAY = 1.0  # seconds into a run
FAULT = "fault.json"
LEFT_SECONDS = 120.0  # in which all processes of a cluster have to be gone; Ray's agents take a minute


def fleet(address: str, workers: int) -> Fleet:
    chosen = FleetOptions(address=address, workers=workers, gpus=1.0)
    return Fleet(chosen, ["benchmark"], truth=False, tell=print)


# Kills


def faulty() -> Plan:
    return tiny_sweep.plan("sds", "psd", prompts=(*tiny_sweep.PROMPTS, "a yellow torus"), steps=12)


def drive(folder: Path, kind: str, run: int, delay: float) -> None:
    """A driver, in a process of its own; loses a worker or a node while the n-th run is made, after a while.

    fault.json says how many runs had ended by then.
    """
    what, begun, ended, now = faulty(), [0], [0], threading.Event()

    def begin(_: object) -> Callable[[object], None]:
        begun[0] += 1
        if begun[0] == run:
            now.set()
        return lambda _: None

    def end(_: object) -> None:
        ended[0] += 1

    def later(event: Callable[[], object]) -> None:
        now.wait()
        time.sleep(delay)
        (folder.parent / FAULT).write_text(json.dumps(ended[0]))
        event()

    watch = Callbacks(begin=begin, end=end, should_stop=lambda: False)
    if kind == "node":
        os.environ.update(RAY | RAY_ALONE)
        from ray.cluster_utils import Cluster

        small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "node_ip_address": "127.0.0.1"}
        head = {"include_dashboard": False, **small}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        nodes = [cluster.add_node(**small) for _ in range(2)]
        lose = functools.partial(cluster.remove_node, nodes[0], allow_graceful=False)
        losing = threading.Thread(target=later, args=(lose,), daemon=True)
        losing.start()
        with fleet(cluster.address, 1) as crew:
            tiny_sweep.made(what, folder.parent, crew, watch, folder)
        losing.join()
        cluster.shutdown()
        return
    with fleet("local", 2) as crew:
        if kind == "worker":
            killing = functools.partial(kill_a_hand, Family())
            threading.Thread(target=later, args=(killing,), daemon=True).start()
        tiny_sweep.made(what, folder.parent, crew, watch, folder)


class Family:
    """The processes that came of this one, those too whose parents are gone; noted as they appear."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}  # number: when it began, as numbers are used again
        threading.Thread(target=self._note, daemon=True).start()

    def _note(self) -> None:
        while True:
            found, parents = self._look(), {os.getpid(), *self._known}
            new = {n: began for n, (parent, began) in found.items() if parent in parents}
            gone = {n for n, began in self._known.items() if n not in found or found[n][1] != began}
            self._known = {n: b for n, b in (self._known | new).items() if n not in gone}
            time.sleep(0.1)

    @staticmethod
    def _look() -> dict[int, tuple[int, int]]:
        """Parent and beginning of every process that runs, by its number."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                words = path.read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            if words[0] != "Z":
                found[int(path.parent.name)] = (int(words[1]), int(words[19]))
        return found

    def alive(self) -> dict[int, str]:
        """What each is called, by its number."""
        found = {}
        for number in list(self._known):
            with contextlib.suppress(OSError):  # gone since
                words = Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ")
                if words:
                    found[number] = words.decode(errors="replace")[:120]
        return found


def kill_a_hand(family: Family) -> None:
    """One that makes runs, if there is one by now."""
    hands = [number for number, words in family.alive().items() if words.startswith("ray::Hand")]
    if hands:
        os.kill(random.choice(hands), signal.SIGKILL)


def killed(kind: str, run: int, delay: float, expected: bytes, family: Family) -> dict[str, Any]:
    """One sweep with a fault: whether its table is the expected one, and what was left behind."""
    with tempfile.TemporaryDirectory() as out:
        folder = make_folder(Path(out), "sweep", faulty().prompts)
        words = [sys.executable, __file__, "--drive", kind, str(run), str(delay), str(folder)]
        driver = subprocess.Popen(words)
        if kind == "driver":
            while driver.poll() is None and len(list(folder.rglob("config.json"))) < run:
                time.sleep(0.02)
            time.sleep(delay)
            driver.kill()
        code = driver.wait(1200)
        fault = folder.parent / FAULT  # not there, where all was over before
        had = json.loads(fault.read_text()) if fault.exists() else len(read_rows(folder))
        if kind == "driver":
            with fleet("local", 2) as crew:
                tiny_sweep.made(faulty(), folder.parent, crew, folder=folder)
        same = (folder / TABLE).read_bytes() == expected
        errors = [o.error for o in read_sweep(folder).outcomes if o.error]
    end = time.monotonic() + LEFT_SECONDS
    while (left := family.alive()) and time.monotonic() < end:
        time.sleep(1.0)
    found = {"kind": kind, "run": run, "delay": round(delay, 2), "code": code, "ended_before": had}
    return {**found, "same": same, "left": sorted(left.values()), "errors": errors}


# Costs


def overhead(tasks: int) -> dict[str, Any]:
    """Milliseconds of a task that has nothing to do, and the driver's memory after every tenth of them."""
    what = tiny_sweep.plan("sds", prompts=("a red cube",), seeds=tasks, steps=1)
    with tempfile.TemporaryDirectory() as out:
        first = tiny_sweep.plan("sds", prompts=("a red cube",), steps=1)
        made = tiny_sweep.made(first, Path(out))
        folder = make_folder(Path(out), "sweep", what.prompts)
        for task in what.tasks():
            _linked(made.folder / first.tasks()[0].folder, folder / task.folder)
        memory: list[float] = []
        count = 0

        def end(_: object) -> None:
            nonlocal count
            count += 1
            if count % max(1, tasks // 10) == 0:
                memory.append(resident_mb())

        watch = dataclasses.replace(tiny_sweep.WATCH, end=end)
        with fleet("local", 2) as crew:
            begin = time.perf_counter()
            done = tiny_sweep.made(what, Path(out), crew, watch, folder)
            seconds = time.perf_counter() - begin
    assert all(o.status == "done" for o in done.outcomes)
    return {"tasks": tasks, "ms_a_task": round(1e3 * seconds / tasks, 2), "driver_mb": memory}


def _linked(source: Path, target: Path) -> None:
    """A copy of a run's folder that takes no room."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            os.link(path, target / path.name)


def resident_mb() -> float:
    """Of this process, now."""
    path = Path("/proc/self/statm")
    if not path.exists():
        return peak_memory_mb() or 0.0
    return round(int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def throughput(runs: int, rounds: int) -> dict[str, Any]:
    """Runs a minute after the first ones, when networks are loaded: without Ray, with 1 worker and with 2.

    The three take turns, and the fastest round of each counts, as others may use the machine. The cores are
    shared as `splatgen sweep` shares them: all for one run, or one for each of two.
    """
    found: dict[str, list[float]] = {"alone": [], "1 worker": [], "2 workers": []}
    load: list[float] = []  # how many processes wanted a core, with those of the benchmark itself
    for _ in range(rounds):
        for workers, rates in enumerate(found.values()):
            rates.append(rate(runs, workers))
            print(f"{workers} workers: {rates[-1]} runs a minute", flush=True)
            load.append(round(os.getloadavg()[0], 1))
    return {"best": {name: max(rates) for name, rates in found.items()}, "rounds": found, "load": load}


def rate(runs: int, workers: int) -> float:
    """Runs a minute of so many workers, 0 for none."""
    what = tiny_sweep.plan("sds", prompts=("a red cube",), seeds=runs + 2, steps=STEPS)
    ends: list[float] = []
    watch = dataclasses.replace(tiny_sweep.WATCH, end=lambda _: ends.append(time.perf_counter()))
    with tempfile.TemporaryDirectory() as out:
        if workers:
            with fleet("local", workers) as crew:
                tiny_sweep.made(what, Path(out), crew, watch)
        else:
            tiny_sweep.made(what, Path(out), None, watch)
    return round(60.0 * runs / (ends[-1] - ends[1]), 2)


def main() -> None:
    if sys.argv[1:2] == ["--drive"]:
        drive(Path(sys.argv[5]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of kills, in turn")
    parser.add_argument("--tasks", type=int, default=2000, help="with nothing to do; 0 leaves this out")
    parser.add_argument("--runs", type=int, default=16, help="of the throughput; 0 leaves this out")
    parser.add_argument("--rounds", type=int, default=3, help="of the throughput")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="result JSON")
    args = parser.parse_args()
    source, family = random.Random(args.seed), Family()
    report: dict[str, Any] = {"date": datetime.now(UTC).strftime("%Y%m%d"), "machine": machine_name()}
    with tempfile.TemporaryDirectory() as out:
        expected = tiny_sweep.table(tiny_sweep.made(faulty(), Path(out)))
    report["kills"] = []
    for n in range(args.kills):
        moment = source.randint(1, len(faulty().tasks())), source.uniform(0.0, MOST_DELAY)
        report["kills"].append(killed(args.kinds[n % len(args.kinds)], *moment, expected, family))
        print(json.dumps(report["kills"][-1]), flush=True)
    if args.tasks:
        report["overhead"] = overhead(args.tasks)
        print(json.dumps(report["overhead"]), flush=True)
    if args.runs:
        report["runs_a_minute"] = throughput(args.runs, args.rounds)
        print(json.dumps(report["runs_a_minute"]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    wrong = [kill for kill in report["kills"] if not kill["same"] or kill["left"]]
    sys.exit(f"{len(wrong)} of {args.kills} kills changed something" if wrong else 0)


if __name__ == "__main__":
    main()
