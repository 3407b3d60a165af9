"""The words of `splatgen sweep` and `splatgen compare`: their common options, and what of them can't be."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from tyro.conf import arg

from splatgen import config as settings
from splatgen.commands.common import arguments, usual
from splatgen.commands.common.arguments import RunFlags, Switch
from splatgen.commands.common.errors import MISSING, USAGE, Failure
from splatgen.config import Config, OutputOptions
from splatgen.config.methods import METHODS, slots
from splatgen.sweeps.ledger import read_plan
from splatgen.sweeps.plan import PRESET, Plan

START = Config(output=OutputOptions(frames=0))  # a turntable a run would take longer than some runs
RAY = "pip install 'splatgen[ray]'"
MAX_SEEDS, MAX_WORKERS, MAX_RUNS = 1000, 1024, 1_000_000


@dataclass(frozen=True, kw_only=True)
class SweepFlags(RunFlags):
    """What every verb takes that makes several runs."""

    methods: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ("sds", "sdi", "rewardsds", "psd")
    """Names of methods, SCORE+PREFERENCE as in sdi+psd, or preset:NAME; the first is what the others are held
    against."""
    seeds: Annotated[int, arg(metavar="N")] = 3
    """Runs a method and prompt: --seed, the next number, and so on."""
    resume: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """The folder of an earlier one: make what is missing in it, with its own settings."""
    workers: Annotated[int, arg(metavar="N")] = 1
    """Runs at once; more than one takes Ray (pip install 'splatgen[ray]'), and shares the cores between
    them. On a cluster, the most."""
    ray: Annotated[str | None, arg(metavar="ADDRESS|auto|local", help_behavior_hint="")] = None
    """A Ray cluster to work on: its address, auto for the one this machine belongs to, local for this
    machine alone."""
    gpus: Annotated[float, arg(metavar="N")] = 1.0
    """GPUs a run takes on a cluster, 0.5 for two runs on each; nodes without any work on their CPUs."""
    dry_run: Switch = False
    """Say what would be run and what it would take, and make nothing."""


C = TypeVar("C", bound=Config)
F = TypeVar("F", bound=SweepFlags)


NOTE = (
    "All methods see the same cameras, times and noises, but for what a method sets itself (sdi anneals its "
    "times). Options of a piece, such as --weighted.candidates, count for the methods that use it; score and "
    "preference come from --methods. A preset:NAME stands in for --preset: it brings its own steps and "
    "cameras too, unless the config file or the command line has them. Methods: {methods}. Presets: "
    "{presets}. Ctrl-C stops; --resume continues."
)


def note() -> str:
    return NOTE.format(methods=", ".join(METHODS), presets=", ".join(settings.presets()))


def check_words(options: SweepFlags, argv: Sequence[str] = ()) -> None:
    """Raise Failure for methods, seeds and workers that can't be, before anything is read."""
    for word in argv:
        if word.partition("=")[0] in ("--score", "--preference"):
            raise Failure(USAGE, f"{word}: scores and preferences come from --methods here")
    if not options.methods:
        raise Failure(USAGE, "no methods: give --methods one or more names")
    for name in options.methods:
        if options.methods.count(name) > 1:
            raise Failure(USAGE, f"the method {name[:60]!r} is there twice: name it once")
        if " " in name and not options.settings.prompt:
            raise Failure(USAGE, f"no method {name[:60]!r}; if that is the prompt, put it before --methods")
    if not 1 <= options.seeds <= MAX_SEEDS:
        raise Failure(USAGE, f"--seeds {options.seeds}: give 1 to {MAX_SEEDS}")
    check_crew(options)


def check_crew(options: SweepFlags) -> None:
    """Raise Failure for workers that there can't be."""
    if not 1 <= options.workers <= MAX_WORKERS:
        raise Failure(USAGE, f"--workers {options.workers}: give 1 to {MAX_WORKERS}")
    if not 0 < options.gpus <= 64 or (options.gpus > 1 and options.gpus % 1):
        raise Failure(USAGE, f"--gpus {options.gpus:g}: give a share up to 1, or a whole number")
    if takes_ray(options) and importlib.util.find_spec("ray") is None:
        option = "--ray" if options.ray is not None else f"--workers {options.workers}"
        raise Failure(MISSING, f"{option} takes Ray, which is not installed: {RAY}, or leave it out")


def takes_ray(options: SweepFlags) -> bool:
    return options.ray is not None or options.workers > 1


def methods_of(
    names: Sequence[str], given: Config, with_preset: Callable[[str], Config]
) -> dict[str, Config]:
    """Each method's settings; with_preset gives those of the options over another preset."""
    bases = {}
    for name in names:
        if name.startswith(PRESET):
            preset = name.removeprefix(PRESET)
            preset_table = {
                "score": START.score,
                "preference": START.preference,
                **settings.read_preset(preset),
            }
            chosen = {key: preset_table[key] for key in ("score", "preference")}
            bases[name] = settings.merge(with_preset(preset), chosen)
        else:
            bases[name] = settings.merge(given, slots(name))
    return bases


def without_stages(chosen: C, preset: str | None) -> C:
    """Settings without the stages of a preset, for what has one: a method that is compared, an edit."""
    own = [] if preset is None else settings.read_preset(preset).get("stages", [])
    return dataclasses.replace(chosen, stages=()) if own and list(chosen.stages) == own else chosen


def about_stages(options: SweepFlags) -> str:
    """What is said of a preset whose stages the methods don't have; empty where there are none."""
    preset = options.preset
    if preset is None or options.settings.stages or not settings.read_preset(preset).get("stages"):
        return ""
    more = f"methods have one; --methods preset:{preset} has them"
    return f"the stages of the preset {preset} are left out: {more}"


def seeds_of(options: SweepFlags) -> range:
    first = options.settings.seed
    return range(first, first + options.seeds)


def check_count(prompts: int, methods: int, seeds: int) -> None:
    """Raise Failure for more runs than a sweep can have."""
    if prompts * methods * seeds > MAX_RUNS:
        raise Failure(USAGE, f"these are more than {MAX_RUNS:,} runs: take fewer prompts, values or seeds")


def read(
    kind: type[F], verb: str, argv: Sequence[str], prompts: Callable[[F], Sequence[str]]
) -> tuple[F, Plan | None]:
    """Options whose words are checked, and the plan of the folder that is gone on with, if one is; prompts
    gives those of options, by which the prior is chosen where the words leave it open."""
    options = arguments.read(kind, verb, argv, note=note() + usual.NOTE)
    if options.resume is None:
        check_words(options, argv)
        options = usual.over_preset(options, verb, argv, note=note(), prompts=prompts)
        chosen = without_stages(options.settings, options.preset)
        return dataclasses.replace(options, settings=chosen), None
    check_alone(options, kind())
    check_crew(options)
    return options, read_plan(options.resume)


def check_alone(options: Any, usual: Any) -> None:
    """Raise Failure when more is given with --resume than what belongs to this session."""
    session = {"resume": None, "json": False, "quiet": False, "dry_run": False}
    session |= {name: getattr(usual, name) for name in ("workers", "ray", "gpus")}
    if dataclasses.replace(options, **session) != usual:
        raise Failure(
            USAGE,
            "--resume takes everything from the folder: give only --workers, --ray, --gpus, --json or "
            "--quiet with it",
        )
