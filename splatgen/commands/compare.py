"""`splatgen compare`: several methods on one prompt, paired: a sweep of one prompt, with a picture sheet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import arg

from splatgen.commands.common import arguments, checks, sweep_words, sweeping
from splatgen.commands.common.sweep_words import START, SweepFlags
from splatgen.config import Config
from splatgen.sweeps.plan import Plan, line_up


@dataclass(frozen=True, kw_only=True)
class Compare(SweepFlags):
    """Make the same prompt with several methods and seeds; prints a table and the folder with all of it."""

    settings: Annotated[Config, arg(name="", prefix_name=False)] = field(default_factory=lambda: START)


def read(argv: Sequence[str]) -> tuple[Compare, Plan]:
    """The options and each method's settings; SystemExit, Failure or ConfigError when they are wrong."""
    options, plan = sweep_words.read(Compare, "compare", argv, lambda o: [o.settings.prompt])
    return options, plan or plan_of(options, lambda name: with_preset(argv, name))


def with_preset(argv: Sequence[str], name: str) -> Config:
    return arguments.read(Compare, "compare", [*argv, "--preset", name], note=sweep_words.note()).settings


def plan_of(options: Compare, with_preset: Callable[[str], Config]) -> Plan:
    """Each method's settings; with_preset gives those of the options over another preset."""
    bases = sweep_words.methods_of(options.methods, options.settings, with_preset)
    return line_up([options.settings.prompt], bases, sweep_words.seeds_of(options))


def check(options: Compare, plan: Plan) -> Plan:
    """Everything that can fail early; returns the plan, with its prompt made possible."""
    for config in plan.methods.values():
        checks.check_names(config)
    if options.resume is None:
        prompt = checks.check_prompts(plan.config(next(iter(plan.methods)), 0), force=options.force).prompt
        plan = dataclasses.replace(plan, prompts=(prompt,))
    sweeping.check(options, plan)
    return plan


def main(argv: Sequence[str]) -> int:
    options, plan = read(argv)
    plan = check(options, plan)
    sweeping.announce(options, plan)
    if options.dry_run:
        return 0
    sweep, stop = sweeping.carry_out(options, plan, ["splatgen", "compare", *argv], "compare")
    return sweeping.finish(sweep, stop, "compare", as_json=options.json)
