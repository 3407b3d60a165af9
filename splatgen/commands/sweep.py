"""`splatgen sweep`: prompts x methods x seeds, with any setting as a further axis."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional, arg

from splatgen.commands.common import arguments, checks, sweep_words, sweeping
from splatgen.commands.common.arguments import Switch
from splatgen.commands.common.errors import USAGE, Failure
from splatgen.commands.common.sweep_words import START, SweepFlags
from splatgen.config import Config
from splatgen.sweeps import prompts
from splatgen.sweeps.plan import Axis, Plan, crossed, line_up, read_axis

SHOWN = 5  # prompts that a line names


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Config):
    """The settings of a sweep's runs; in the prompt's place stands where prompts come from."""

    prompt: Annotated[str, Positional, arg(metavar="PROMPTS", help_behavior_hint="")] = ""
    """A file of prompts (.txt a line each, .csv, .json, .jsonl; T3Bench and GPTEval3D as they are), or the
    name of a set that is part of the program: shelf-100."""


def _start() -> SweepConfig:
    return SweepConfig(output=START.output)


@dataclass(frozen=True, kw_only=True)
class Sweep(SweepFlags):
    """Make every prompt of a file with several methods and seeds; prints a table and the folder with all of
    it."""

    axes: Annotated[tuple[str, ...], arg(name="set", metavar="KEY=A,B ...")] = ()
    """A setting and the values it takes in turn, as a further axis: guidance.scale=2,5; repeat for more."""
    skip_unknown: Switch = False
    """Leave out the prompts that the prior can't read, instead of refusing all of them."""
    settings: Annotated[SweepConfig, arg(name="", prefix_name=False)] = field(default_factory=_start)


def plain(chosen: SweepConfig) -> Config:
    """The settings without where prompts come from."""
    given = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(Config)}
    return Config(**{**given, "prompt": ""})


def read(argv: Sequence[str]) -> tuple[Sweep, Plan]:
    """The options and what is run; SystemExit, Failure or ValueError when they are wrong."""
    options, plan = sweep_words.read(Sweep, "sweep", argv, named)
    if plan is not None:
        return options, plan
    found = prompts_of(place(options))

    def with_preset(name: str) -> Config:
        words = [*argv, "--preset", name]
        return plain(arguments.read(Sweep, "sweep", words, note=sweep_words.note()).settings)

    return options, plan_of(options, found, [read_axis(text) for text in options.axes], with_preset)


def place(options: Sweep) -> str:
    """Where the prompts come from; Failure where nobody said."""
    if not options.settings.prompt:
        raise Failure(USAGE, "no prompts: give a file of them, or a set: " + ", ".join(prompts.included()))
    return options.settings.prompt


def named(options: Sweep) -> list[str]:
    """The prompts themselves, each once."""
    return prompts.read_prompts(prompts.find(place(options)))[0]


def prompts_of(given: str | os.PathLike[str] | Sequence[str]) -> list[str]:
    """Prompts of a list, a file or an included set, each once; those that are there again are named."""
    if isinstance(given, str | os.PathLike):
        path = prompts.find(os.fspath(given))
        name, (found, again) = path.name, prompts.read_prompts(path)
    else:
        name, (found, again) = "prompts", prompts.distinct(given, "the list")
    if again:
        print(f"splatgen: {name}: {_some(again)} more than once: taken once", file=sys.stderr)
    return found


def plan_of(
    options: Sweep, found: Sequence[str], axes: Sequence[Axis], with_preset: Callable[[str], Config]
) -> Plan:
    """Every prompt with each method's settings; with_preset gives the options' over another preset."""
    if len({axis.path for axis in axes}) < len(axes):
        raise Failure(USAGE, "--set has a key twice: give all of its values at once")
    bases = sweep_words.methods_of(options.methods, plain(options.settings), with_preset)
    most = math.prod(len(axis.values) for axis in axes)
    sweep_words.check_count(len(found), len(bases) * most, options.seeds)
    methods = crossed(bases, axes)
    return line_up(found, methods, sweep_words.seeds_of(options), {axis.path[0] for axis in axes})


def check(options: Sweep, plan: Plan) -> Plan:
    """Everything that can fail early; returns the plan, with the prompts that can be made."""
    for config in plan.methods.values():
        checks.check_names(config)
    if options.resume is None:
        plan = dataclasses.replace(plan, prompts=possible(options, plan))
    sweeping.check(options, plan)
    return plan


def possible(options: Sweep, plan: Plan) -> tuple[str, ...]:
    """The prompts that every method's prior and rewards can read; Failure that names the others."""
    found: list[str] = []
    unknown: dict[str, str] = {}
    for prompt in plan.prompts:
        try:
            for config in plan.methods.values():
                given = dataclasses.replace(config, prompt=prompt)
                found.append(checks.check_prompts(given, force=options.force).prompt)
        except Failure as failure:
            unknown[prompt] = str(failure)
    if unknown and not options.skip_unknown:
        first = next(iter(unknown.values()))
        raise Failure(
            USAGE,
            f"{_some(list(unknown))} of {len(plan.prompts)} can't be made: --skip-unknown leaves them out, "
            f"--force takes the nearest; of the first: {first}",
        )
    kept = tuple(dict.fromkeys(p for p in found if p not in unknown))
    if not kept:
        raise Failure(
            USAGE, f"none of {len(plan.prompts)} prompts can be made: {next(iter(unknown.values()))}"
        )
    if unknown:
        print(f"splatgen: left out: {_some(list(unknown), len(unknown))}", file=sys.stderr)
    return kept


def _some(texts: Sequence[str], most: int = SHOWN) -> str:
    """`2 prompts ('a corgi', 'a hat')`, with the first of many."""
    named = ", ".join(repr(text[:60]) for text in texts[:most])
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return f"{len(texts)} prompt{'s' if len(texts) > 1 else ''} ({named}{more})"


def main(argv: Sequence[str]) -> int:
    options, plan = read(argv)
    plan = check(options, plan)
    sweeping.announce(options, plan)
    if options.dry_run:
        return 0
    sweep, stop = sweeping.carry_out(options, plan, ["splatgen", "sweep", *argv], "sweep")
    return sweeping.finish(sweep, stop, "sweep", as_json=options.json)
