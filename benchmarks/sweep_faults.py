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
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from splatgen.config import Config, from_dict, merge
from splatgen.config.methods import slots
from splatgen.runs.machine import machine_name
from splatgen.runs.run_folder import peak_memory_mb
from splatgen.sweeps.fleet import RAY, RAY_ALONE, Fleet, FleetOptions
from splatgen.sweeps.ledger import FINISHED, Sweep, make_folder, read_sweep
from splatgen.sweeps.plan import Plan, line_up
from splatgen.sweeps.sweep import Alone, Callbacks, Crew, carry_out
from splatgen.sweeps.worker import Worker

KINDS = ("worker", "node", "driver")
PROMPTS = ("a red cube", "a blue sphere", "a green cone", "a yellow torus")
WATCH = Callbacks(begin=lambda _: lambda _: None, end=lambda _: None, should_stop=lambda: False)
LEFT_SECONDS = 120.0  # in which all processes of a cluster have to be gone; Ray's agents take a minute


def config(steps: int) -> Config:
    return from_dict(
        {
            "steps": steps,
            "prior": "toybox-mini",
            "reward": ["toybox-mini"],
            "device": "cpu",
            "views": {"count": 2, "size": [16]},
            "splats": {"count": 60},
            "output": {"frames": 0, "size": 32, "checkpoint_seconds": 1e-9},
        }
    )


def plan(methods: Sequence[str], prompts: Sequence[str], seeds: int, steps: int) -> Plan:
    return line_up(prompts, {m: merge(config(steps), slots(m)) for m in methods}, range(seeds))


def sweep(what: Plan, folder: Path, crew: Crew | None = None, watch: Callbacks = WATCH) -> Sweep:
    crew = crew or Alone(worker=Worker(["benchmark"], truth=False))
    return carry_out(what, folder, crew, command=["benchmark"], watch=watch)


def fleet(address: str, workers: int) -> Fleet:
    chosen = FleetOptions(address=address, workers=workers, gpus=1.0)
    return Fleet(chosen, ["benchmark"], truth=False, tell=print)


# Kills


def faulty() -> Plan:
    return plan(("sds", "psd"), PROMPTS, 1, 12)


def drive(folder: Path, kind: str, delay: float) -> None:
    """A driver, in a process of its own; kills a worker or a node of its own after a while."""
    what, begun = faulty(), threading.Event()
    watch = Callbacks(
        begin=lambda _: begun.set() or (lambda _: None),  # type: ignore[func-returns-value]
        end=lambda _: None,
        should_stop=lambda: False,
    )

    def later(event: Callable[[], object]) -> None:
        begun.wait()
        time.sleep(delay)
        event()

    if kind == "node":
        os.environ.update(RAY | RAY_ALONE)
        from ray.cluster_utils import Cluster

        small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "node_ip_address": "127.0.0.1"}
        head = {"include_dashboard": False, **small}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        nodes = [cluster.add_node(**small) for _ in range(2)]
        lose = lambda: cluster.remove_node(nodes[0], allow_graceful=False)  # noqa: E731
        losing = threading.Thread(target=later, args=(lose,), daemon=True)
        losing.start()
        with fleet(cluster.address, 1) as crew:
            sweep(what, folder, crew, watch)
        losing.join()
        cluster.shutdown()
        return
    with fleet("local", 2) as crew:
        if kind == "worker":
            threading.Thread(target=later, args=(kill_a_hand,), daemon=True).start()
        sweep(what, folder, crew, watch)


def processes(mark: str = "ray") -> dict[int, str]:
    """Ray's processes on this machine, by their number."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words.startswith(f"{mark}::") or "/ray/core/src/ray/" in words:
            found[int(path.parent.name)] = words[:120]
    return found


def kill_a_hand() -> None:
    """One that makes runs, if there is one by now."""
    hands = [number for number, words in processes().items() if words.startswith("ray::Hand")]
    if hands:
        os.kill(random.choice(hands), signal.SIGKILL)


def killed(kind: str, delay: float, expected: bytes) -> dict[str, Any]:
    """One sweep with a fault: whether its table is the expected one, and what was left behind."""
    others = processes().keys()
    with tempfile.TemporaryDirectory() as out:
        folder = make_folder(Path(out), "sweep", PROMPTS)
        words = [sys.executable, __file__, "--drive", kind, str(delay), str(folder)]
        driver = subprocess.Popen(words)
        if kind == "driver":
            while driver.poll() is None and not list(folder.rglob("step-*")):
                time.sleep(0.05)
            time.sleep(delay)
            driver.kill()
        code = driver.wait(1200)
        had = sum(o.status in FINISHED for o in read_sweep(folder).outcomes)
        if kind == "driver":
            with fleet("local", 2) as crew:
                sweep(faulty(), folder, crew)
        same = (folder / "table.md").read_bytes() == expected
        errors = [o.error for o in read_sweep(folder).outcomes if o.error]
    end = time.monotonic() + LEFT_SECONDS
    while (left := processes().keys() - others) and time.monotonic() < end:
        time.sleep(1.0)
    found = {"kind": kind, "delay": round(delay, 2), "code": code, "finished_before": had}
    return {**found, "same": same, "left": len(left), "errors": errors}


# Costs


def overhead(tasks: int) -> dict[str, Any]:
    """Milliseconds of a task that has nothing to do, and the driver's memory after every tenth of them."""
    what = plan(("sds",), ("a red cube",), tasks, 1)
    with tempfile.TemporaryDirectory() as out:
        folder = make_folder(Path(out), "sweep", what.prompts)
        first = plan(("sds",), ("a red cube",), 1, 1)
        made = sweep(first, folder).folder / first.tasks()[0].folder
        for task in what.tasks()[1:]:
            _linked(made, folder / task.folder)
        (folder / "sweep.jsonl").unlink()
        memory: list[float] = []
        count = 0

        def end(_: object) -> None:
            nonlocal count
            count += 1
            if count % max(1, tasks // 10) == 0:
                memory.append(resident_mb())

        with fleet("local", 2) as crew:
            begin = time.perf_counter()
            done = sweep(what, folder, crew, dataclasses.replace(WATCH, end=end))
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


def throughput(runs: int) -> dict[str, float]:
    """Runs a minute after the first ones, when networks are loaded: without Ray, with 1 worker and with 2."""
    what = plan(("sds",), ("a red cube",), runs + 2, 100)
    found = {}
    for name, workers in (("alone", 0), ("1 worker", 1), ("2 workers", 2)):
        ends: list[float] = []
        watch = dataclasses.replace(WATCH, end=functools.partial(_note, ends))
        with tempfile.TemporaryDirectory() as out:
            folder = make_folder(Path(out), "sweep", what.prompts)
            if workers:
                with fleet("local", workers) as crew:
                    sweep(what, folder, crew, watch)
            else:
                sweep(what, folder, None, watch)
        found[name] = round(60.0 * runs / (ends[-1] - ends[1]), 2)
    return found


def _note(ends: list[float], _: object) -> None:
    ends.append(time.perf_counter())


def main() -> None:
    if sys.argv[1:2] == ["--drive"]:
        drive(Path(sys.argv[4]), sys.argv[2], float(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of kills, in turn")
    parser.add_argument("--tasks", type=int, default=2000, help="with nothing to do; 0 leaves this out")
    parser.add_argument("--runs", type=int, default=16, help="of the throughput; 0 leaves this out")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="result JSON")
    args = parser.parse_args()
    source = random.Random(args.seed)
    report: dict[str, Any] = {"date": datetime.now(UTC).strftime("%Y%m%d"), "machine": machine_name()}
    with tempfile.TemporaryDirectory() as out:
        whole = sweep(faulty(), make_folder(Path(out), "sweep", PROMPTS))
        expected = (whole.folder / "table.md").read_bytes()
    report["kills"] = []
    for n in range(args.kills):
        report["kills"].append(killed(args.kinds[n % len(args.kinds)], source.uniform(0.0, 6.0), expected))
        print(json.dumps(report["kills"][-1]), flush=True)
    if args.tasks:
        report["overhead"] = overhead(args.tasks)
        print(json.dumps(report["overhead"]), flush=True)
    if args.runs:
        report["runs_a_minute"] = throughput(args.runs)
        print(json.dumps(report["runs_a_minute"]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    wrong = [kill for kill in report["kills"] if not kill["same"] or kill["left"]]
    sys.exit(f"{len(wrong)} of {args.kills} kills changed something" if wrong else 0)


if __name__ == "__main__":
    main()
