"""A sweep from its plan to its table: what is missing is made, and every outcome is written as it comes.

A crew makes the runs: this process (Alone), or workers on this and other machines (fleet.py).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from splatgen.loop.loop import Progress
from splatgen.runs import atomic
from splatgen.sweeps.ledger import FINISHED, TABLE, Ledger, Outcome, Sweep
from splatgen.sweeps.plan import Plan, Task
from splatgen.sweeps.sheet import write_sheet
from splatgen.sweeps.table import table
from splatgen.sweeps.worker import Worker, tried

TABLE_SECONDS = 10.0  # between two writings of a table that grows


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Who is told what happens, and says when to stop."""

    begin: Callable[[Task], Callable[[Progress], None]]  # returns what the run reports to
    end: Callable[[Outcome], None]
    should_stop: Callable[[], bool]


class Crew(Protocol):
    """Who makes the runs."""

    def prepare(self, plan: Plan) -> None:
        """Whatever can fail before there is a folder."""

    def threads(self) -> int:
        """What a run has of the cores, in a sweep that begins."""

    def outcomes(
        self, tasks: Sequence[Task], root: Path, threads: int, watch: Callbacks
    ) -> Iterator[Outcome]:
        """Of each task as it is finished; ends early, with runs that stopped, when asked to stop."""


@dataclass(frozen=True, kw_only=True)
class Alone:
    """This process, one run after the other."""

    worker: Worker

    def prepare(self, plan: Plan) -> None:
        """Load the networks of the first run."""
        self.worker.load(plan.tasks()[0].config)

    def threads(self) -> int:
        return torch.get_num_threads()

    def outcomes(
        self, tasks: Sequence[Task], root: Path, threads: int, watch: Callbacks
    ) -> Iterator[Outcome]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for task in tasks:
                report = watch.begin(task)
                yield tried(functools.partial(self.worker.make, task, root, report, watch.should_stop))
                if watch.should_stop():
                    return
        finally:
            torch.set_num_threads(before)


def carry_out(plan: Plan, folder: Path, crew: Crew, *, command: Sequence[str], watch: Callbacks) -> Sweep:
    """Make every run of a plan that `folder` doesn't hold yet, and the table of all of them.

    Raises BusyError where another process is at work in the folder.
    """
    tasks = plan.tasks()
    with Ledger(folder, plan, command) as ledger:
        found = ledger.known()
        ledger.threads = ledger.threads or crew.threads()

        def now() -> Sweep:
            outcomes = tuple(found.get(task.folder) or Outcome.waiting(task) for task in tasks)
            return Sweep(folder=folder, plan=plan, outcomes=outcomes, seconds=ledger.seconds())

        ledger.save(now())
        written = time.monotonic()
        left = [t for t in tasks if t.folder not in found or found[t.folder].status not in FINISHED]
        for outcome in crew.outcomes(left, folder, ledger.threads, watch):
            found[outcome.folder] = outcome
            ledger.add(outcome)
            watch.end(outcome)
            if time.monotonic() - written > TABLE_SECONDS:
                write_table(now())
                ledger.save(now())  # for the time it took, should this process be killed
                written = time.monotonic()
        sweep = now()
        ledger.save(sweep)
        write_table(sweep)
        if len(plan.prompts) == 1:
            write_sheet(sweep)
    return sweep


def write_table(sweep: Sweep) -> None:
    """table.md, without what differs from one time to the next."""
    atomic.write_text(sweep.folder / TABLE, table(sweep, times=False) + "\n")
