"""What `compare` and `sweep` share beside their words: checks, who makes the runs, and what is shown."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from splatgen import config as settings
from splatgen.commands.common import checks, embedded
from splatgen.commands.common.errors import DISK, DIVERGED, MEMORY, USAGE, Failure
from splatgen.commands.common.execution import headline
from splatgen.commands.common.progress import Reporter, duration
from splatgen.commands.common.signals import Stop, on_signals
from splatgen.commands.common.sweep_words import SweepFlags, about_stages, takes_ray
from splatgen.models.memory import keep_freed
from splatgen.sweeps.estimate import estimate, model_calls
from splatgen.sweeps.ledger import (
    FILE,
    FINISHED,
    ROWS,
    SHEET,
    Outcome,
    Sweep,
    make_folder,
    read_rows,
)
from splatgen.sweeps.plan import Plan, Task
from splatgen.sweeps.table import columns, table
from splatgen.worlds.shelf import shelf_folder

if TYPE_CHECKING:
    from splatgen.loop.loop import Progress
    from splatgen.sweeps.sweep import Crew

CODES = {"diverged": DIVERGED, "oom": MEMORY}  # when no run came to its end
SHOWN = 3  # numbers of a run on its line


def check(options: SweepFlags, plan: Plan) -> None:
    """Everything that can fail early but the prompts, cheapest first."""
    for config in plan.methods.values():
        checks.check_names(config)
        if config.source:
            raise Failure(USAGE, f"source is {config.source!r}: a comparison edits nothing; leave it out")
        checks.check_init(config)
    if options.ray in (None, "local"):  # else the nodes look for them
        for config in plan.methods.values():
            checks.check_models(config)
            if has_truth(plan):
                judge = "shelf-judge" if config.prior == "shelf" else "toybox-judge"
                checks.check_models(dataclasses.replace(config, holdout_reward=(judge,)))
            checks.check_device(config)
    checks.check_out(options.out if options.resume is None else options.resume)


def has_truth(plan: Plan) -> bool:
    """Whether results can be compared with exact pictures of the prompts."""
    worlds = [embedded.of_prior(config.prior) for config in plan.methods.values()]
    return all(w is not None and (w.name != "shelf" or shelf_folder() is not None) for w in worlds)


def missing(options: SweepFlags, plan: Plan) -> list[Task]:
    """The runs that an earlier session has not finished."""
    rows = [] if options.resume is None else read_rows(options.resume)
    done = {o.folder for o in rows if o.status in FINISHED}
    return [task for task in plan.tasks() if task.folder not in done]


def announce(options: SweepFlags, plan: Plan) -> None:
    """Say what is run and what it takes; Failure where the disk has not that much room."""
    tasks = missing(options, plan)
    found = estimate(tasks)
    sizes = [(len(plan.prompts), "prompt"), (len(plan.methods), "method"), (len(plan.seeds), "seed")]
    product = " x ".join(f"{n} {name}{'s' if n > 1 else ''}" for n, name in sizes)
    parts = [f"{found.runs:,} runs", f"about {found.calls:,} model calls"]
    if found.seconds is not None:
        parts.append(f"about {duration(found.seconds / options.workers)}")
    parts.append(f"{found.disk / 2**20:,.0f} MB")
    if len(tasks) < len(plan.tasks()):
        parts.append(f"{len(plan.tasks()) - len(tasks):,} are there already")
    if not options.quiet or options.dry_run:
        if about := about_stages(options):
            print(f"splatgen: {about}", file=sys.stderr)
        print(f"splatgen: {product}: {', '.join(parts)}", file=sys.stderr, flush=True)
    where = options.resume or options.out
    existing = next(path for path in [where.absolute(), *where.absolute().parents] if path.exists())
    free = shutil.disk_usage(existing).free
    if found.disk > free:
        raise Failure(
            DISK,
            f"{free / 2**20:,.0f} MB free in {existing}, these runs take {found.disk / 2**20:,.0f}: "
            "free some, use another --out, or take fewer",
        )


class Announcer:
    """Tells stderr which run is on, how far it is, and how it ended."""

    def __init__(self, plan: Plan, *, missing: Sequence[Task], quiet: bool) -> None:
        self.quiet = quiet
        self.calls = {task.folder: model_calls(task.config) for task in missing}  # of runs that are to come
        self.made, self.began = 0.0, time.monotonic()  # calls of those that have ended
        self.numbers = {task.folder: n for n, task in enumerate(plan.tasks(), 1)}
        self.several, self.columns = len(plan.prompts) > 1, columns(plan)
        self.reporter = Reporter(sys.stderr, quiet=quiet)

    def name(self, run: Task | Outcome) -> str:
        prompt = f", {run.prompt}" if self.several else ""
        return f"{self.numbers[run.folder]}/{len(self.numbers)} {run.method}, seed {run.seed}{prompt}"

    def begin(self, task: Task) -> Callable[[Progress], None]:
        self.reporter.close()
        if not self.quiet:
            left = "" if self.several else self.left()
            print(f"splatgen: {self.name(task)}{left}", file=sys.stderr, flush=True)
        self.reporter = Reporter(sys.stderr, quiet=self.quiet)
        return self.reporter

    def left(self) -> str:
        """How long the rest takes at the seconds a model call that were seen; empty at both ends."""
        seconds = (time.monotonic() - self.began) / max(self.made, 1.0)
        return f"; {duration(sum(self.calls.values()) * seconds)} left" if self.calls and self.made else ""

    def end(self, outcome: Outcome) -> None:
        self.made += self.calls.pop(outcome.folder, 0.0)
        self.reporter.close()
        if outcome.error is not None:
            text = f"{outcome.status}: {outcome.error}"
        elif self.quiet or not (self.several or outcome.node):
            return
        else:
            shown = {k: c for k, c in self.columns.items() if k in outcome.numbers and k[:5] != "cost/"}
            told = [f"{t} {outcome.numbers[k]:.{d}f}" for k, (t, d) in list(shown.items())[:SHOWN]]
            where = [outcome.node] if outcome.node else []
            left = self.left() if outcome.status == "done" else ""
            text = ", ".join([outcome.status, *told, *where]) + left
        print(f"splatgen: {self.name(outcome)}: {text}", file=sys.stderr, flush=True)


def carry_out(options: SweepFlags, plan: Plan, command: Sequence[str], kind: str) -> tuple[Sweep, Stop]:
    """Every run of the plan that is missing, with progress on stderr and signals that stop it."""
    from splatgen.sweeps import sweep

    announcer = Announcer(plan, missing=missing(options, plan), quiet=options.quiet)
    with recruited(options, plan, command) as crew, on_signals() as stop:
        watch = sweep.Callbacks(begin=announcer.begin, end=announcer.end, should_stop=stop.requested)
        if options.resume is None:  # what can't be loaded leaves no folder
            crew.prepare(plan)
        folder = options.resume or make_folder(options.out, kind, plan.prompts)
        if options.resume is None and not options.quiet:
            print(f"splatgen: in {folder}", file=sys.stderr, flush=True)
        try:
            return sweep.carry_out(plan, folder, crew, command=command, watch=watch), stop
        finally:
            announcer.reporter.close()


@contextlib.contextmanager
def recruited(options: SweepFlags, plan: Plan, command: Sequence[str]) -> Iterator[Crew]:
    """Who makes the runs: this process, or workers under Ray."""
    if takes_ray(options):
        from splatgen.sweeps.fleet import Fleet, FleetOptions

        chosen = FleetOptions(address=options.ray or "local", workers=options.workers, gpus=options.gpus)
        tell = _ignore if options.quiet else _say
        with Fleet(chosen, command, truth=has_truth(plan), tell=tell) as fleet:
            yield fleet
        return
    from splatgen.sweeps.sweep import Alone
    from splatgen.sweeps.worker import Worker

    choice = checks.resolve(plan.first)
    if choice.device == "cpu":
        keep_freed()
    if not options.quiet:
        print(f"splatgen: {headline(plan.first, choice)}", file=sys.stderr, flush=True)
    yield Alone(worker=Worker(command, truth=has_truth(plan)))


def _say(text: str) -> None:
    print(f"splatgen: {text}", file=sys.stderr, flush=True)


def _ignore(text: str) -> None:
    """Nobody is told."""


def show(sweep: Sweep, *, as_json: bool) -> None:
    """The table and the folder, or all that the folder holds with the paths."""
    folder = sweep.folder
    if as_json:
        print(json.dumps(content(sweep)), flush=True)
        return
    runs = sum(o.status in FINISHED for o in sweep.outcomes)
    print(f"{table(sweep)}\n{runs} runs in {duration(sweep.seconds)}.\n\n{folder}", flush=True)


def content(sweep: Sweep) -> dict[str, Any]:
    """sweep.json, the rows and the table as one object."""
    from splatgen.sweeps.table import measures

    folder = sweep.folder
    paths = {"folder": folder, "rows": folder / ROWS, "sheet": folder / SHEET}
    numbers = {
        method: {name: dataclasses.asdict(measure) for name, measure in found.items()}
        for method, found in measures(sweep).items()
    }
    return {
        **{key: str(path) for key, path in paths.items() if path.exists()},
        **settings.read_file(folder / FILE),
        "runs": [dataclasses.asdict(o) for o in sweep.outcomes],
        "table": numbers,
    }


def finish(sweep: Sweep, stop: Stop, verb: str, *, as_json: bool) -> int:
    """Show a sweep and return the exit code."""
    show(sweep, as_json=as_json)
    if not sweep.complete and stop.requested():
        command = shlex.join(["splatgen", verb, "--resume", str(sweep.folder)])
        print(f"splatgen: stopped; continue with: {command}", file=sys.stderr)
        return stop.exit_code
    statuses = [o.status for o in sweep.outcomes]
    return 0 if "done" in statuses else CODES.get(statuses[0], 1)
