"""A sweep of the miniature prior that takes seconds, in this process or under Ray; what is run, once, for
sweep_faults.py and for the tests of sweeps. Not a command.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from splatgen.config import from_dict, merge
from splatgen.config.methods import slots
from splatgen.sweeps.ledger import Sweep, make_folder
from splatgen.sweeps.plan import Plan, line_up
from splatgen.sweeps.sweep import Alone, Callbacks, Crew, carry_out
from splatgen.sweeps.worker import Worker

PROMPTS = ("a red cube", "a blue sphere", "a green cone")
WATCH = Callbacks(begin=lambda _: lambda _: None, end=lambda _: None, should_stop=lambda: False)


def plan(*methods: str, prompts: Sequence[str] = PROMPTS, seeds: int = 1, steps: int = 3) -> Plan:
    """Runs of few splats and small pictures, with a checkpoint after every step."""
    base = from_dict(
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
    return line_up(prompts, {name: merge(base, slots(name)) for name in methods}, range(seeds))


def made(
    what: Plan, out: Path, crew: Crew | None = None, watch: Callbacks = WATCH, folder: Path | None = None
) -> Sweep:
    """A sweep in a new folder in `out`, or what is left of one in `folder`."""
    crew = crew or Alone(worker=Worker(["tiny"], truth=False))
    return carry_out(
        what, folder or make_folder(out, "sweep", what.prompts), crew, command=["tiny"], watch=watch
    )


def table(sweep: Sweep) -> bytes:
    return (sweep.folder / "table.md").read_bytes()
