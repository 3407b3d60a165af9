"""`splatgen compare`: several methods on one prompt, paired; a table, a picture sheet, a JSON."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from splatgen import config as settings
from splatgen.commands.common import arguments, checks, embedded
from splatgen.commands.common.arguments import RunFlags
from splatgen.commands.common.errors import DIVERGED, MEMORY, USAGE, Failure
from splatgen.commands.common.execution import headline
from splatgen.commands.common.progress import Reporter
from splatgen.commands.common.signals import Stop, on_signals
from splatgen.config import Config, ConfigError, OutputOptions
from splatgen.config.methods import METHODS, ComparisonPlan, line_up, slots
from splatgen.runs.statistics import Measure, summarise
from splatgen.worlds.shelf import shelf_folder

if TYPE_CHECKING:
    from splatgen.loop.comparison import Comparison, Outcome
    from splatgen.loop.loop import Progress

START = Config(output=OutputOptions(frames=0))  # a turntable a run would take longer than some runs
PRESET = "preset:"
MAX_SEEDS = 1000
CODES = {"diverged": DIVERGED, "oom": MEMORY}  # when no run came to its end


@dataclass(frozen=True, kw_only=True)
class Compare(RunFlags):
    """Make the same prompt with several methods and seeds; prints a table and the folder with all of it."""

    methods: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ("sds", "sdi", "rewardsds", "psd")
    """Names of methods, SCORE+PREFERENCE as in sdi+psd, or preset:NAME; the first is what the others are held
    against."""
    seeds: Annotated[int, arg(metavar="N")] = 3
    """Runs a method: --seed, the next number, and so on."""
    resume: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """A comparison's folder: make what is missing in it, with its own settings."""
    settings: Annotated[Config, arg(name="", prefix_name=False)] = field(default_factory=lambda: START)


NOTE = (
    "All methods see the same cameras, times and noises, but for what a method sets itself (sdi anneals its "
    "times). Options of a piece, such as --weighted.candidates, count for the methods that use it; score and "
    "preference come from --methods. A preset:NAME stands in for --preset: it brings its own steps and "
    "cameras too, unless the config file or the command line has them. Methods: {methods}. Presets: "
    "{presets}. Ctrl-C stops; --resume continues."
)


def read(argv: Sequence[str]) -> tuple[Compare, ComparisonPlan]:
    """The options and each method's settings; SystemExit, Failure or ConfigError when they are wrong."""
    note = NOTE.format(methods=", ".join(METHODS), presets=", ".join(settings.presets()))
    options = arguments.read(Compare, "compare", argv, note=note)
    if options.resume is not None:
        return options, reopen(options, options.resume)
    for word in argv:
        if word.partition("=")[0] in ("--score", "--preference"):
            raise Failure(USAGE, f"{word}: a comparison takes scores and preferences from --methods")

    def with_preset(name: str) -> Config:
        return arguments.read(Compare, "compare", [*argv, "--preset", name], note=note).settings

    return options, plan_of(options, with_preset)


def plan_of(options: Compare, with_preset: Callable[[str], Config]) -> ComparisonPlan:
    """Each method's settings; with_preset gives those of the options over another preset."""
    check_words(options)
    bases = {}
    for name in options.methods:
        if name.startswith(PRESET):
            preset = name.removeprefix(PRESET)
            table = {"score": START.score, "preference": START.preference, **settings.read_preset(preset)}
            chosen = {key: table[key] for key in ("score", "preference")}
            bases[name] = settings.merge(with_preset(preset), chosen)
        else:
            bases[name] = settings.merge(options.settings, slots(name))
    first = options.settings.seed
    return line_up(bases, range(first, first + options.seeds))


def check_words(options: Compare) -> None:
    """Raise Failure for methods and seeds that can't be, before anything is read."""
    if not options.methods:
        raise Failure(USAGE, "no methods: give --methods one or more names")
    for name in options.methods:
        if options.methods.count(name) > 1:
            raise Failure(USAGE, f"the method {name[:60]!r} is there twice: name it once")
        if " " in name and not options.settings.prompt:
            raise Failure(USAGE, f"no method {name[:60]!r}; if that is the prompt, put it before --methods")
    if not 1 <= options.seeds <= MAX_SEEDS:
        raise Failure(USAGE, f"--seeds {options.seeds}: give 1 to {MAX_SEEDS}")


def reopen(options: Compare, folder: Path) -> ComparisonPlan:
    """The plan of an earlier comparison; raises Failure when there is none or other options are given."""
    others = dataclasses.replace(options, resume=None, json=False, quiet=False)
    if others != Compare():
        raise Failure(USAGE, "--resume takes everything from the folder: give only --json or --quiet with it")
    path = folder / "comparison.json"
    if not path.is_file():
        raise Failure(USAGE, f"{folder} has no comparison.json: give a folder made by `splatgen compare`")
    table = settings.read_file(path)
    try:
        methods = {name: settings.from_dict(values) for name, values in table["methods"].items()}
        seeds = [int(seed) for seed in table["seeds"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} holds no methods and seeds: start a new comparison") from error
    return line_up(methods, seeds)


def check(options: Compare, plan: ComparisonPlan) -> ComparisonPlan:
    """Everything that can fail early, cheapest first; returns the plan, with its prompt made possible."""
    for config in plan.methods.values():
        checks.check_names(config)
        if config.source:
            raise Failure(USAGE, f"source is {config.source!r}: a comparison edits nothing; leave it out")
    prompt = checks.check_prompts(plan.first, force=options.force).prompt
    methods = {name: dataclasses.replace(config, prompt=prompt) for name, config in plan.methods.items()}
    plan = dataclasses.replace(plan, methods=methods)
    for config in plan.methods.values():
        checks.check_init(config)
    checks.check_models(plan.first)
    if has_truth(plan):
        judge = "shelf-judge" if plan.first.prior == "shelf" else "toybox-judge"
        checks.check_models(dataclasses.replace(plan.first, holdout_reward=(judge,)))
    checks.check_device(plan.first)
    checks.check_out(options.out if options.resume is None else options.resume)
    return plan


def has_truth(plan: ComparisonPlan) -> bool:
    """Whether results can be compared with exact pictures of the prompt."""
    world = embedded.of_prior(plan.first.prior)
    return world is not None and (world.name != "shelf" or shelf_folder() is not None)


class Announcer:
    """Tells stderr which run is on, how far it is, and how it ended."""

    def __init__(self, plan: ComparisonPlan, *, quiet: bool) -> None:
        self.total = len(plan.methods) * len(plan.seeds)
        self.order = [(method, seed) for seed in plan.seeds for method in plan.methods]
        self.quiet = quiet
        self.reporter = Reporter(sys.stderr, quiet=quiet)

    def begin(self, method: str, seed: int) -> Callable[[Progress], None]:
        if not self.quiet:
            number = self.order.index((method, seed)) + 1
            print(f"splatgen: {number}/{self.total} {method}, seed {seed}", file=sys.stderr, flush=True)
        self.reporter = Reporter(sys.stderr, quiet=self.quiet)
        return self.reporter

    def end(self, outcome: Outcome) -> None:
        self.reporter.close()
        if outcome.error is not None:
            name = f"{outcome.method}, seed {outcome.seed}"
            print(f"splatgen: {name}: {outcome.status}: {outcome.error}", file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
    options, plan = read(argv)
    comparison, stop = carry_out(options, check(options, plan), ["splatgen", "compare", *argv])
    show(comparison, as_json=options.json)
    if not comparison.complete and stop.requested():
        command = shlex.join(["splatgen", "compare", "--resume", str(comparison.folder)])
        print(f"splatgen: stopped; continue with: {command}", file=sys.stderr)
        return stop.exit_code
    statuses = [o.status for o in comparison.outcomes]
    return 0 if "done" in statuses else CODES.get(statuses[0], 1)


def carry_out(options: Compare, plan: ComparisonPlan, command: Sequence[str]) -> tuple[Comparison, Stop]:
    """Every run of the plan, with progress on stderr and signals that stop it."""
    choice = checks.resolve(plan.first)
    from splatgen.loop.comparison import Callbacks, compare

    if not options.quiet:
        size = f"{len(plan.methods)} methods, {len(plan.seeds)} seeds"
        print(f"splatgen: {size}; {headline(plan.first, choice)}", file=sys.stderr, flush=True)
    announcer = Announcer(plan, quiet=options.quiet)
    with on_signals() as stop:
        watch = Callbacks(begin=announcer.begin, end=announcer.end, should_stop=stop.requested)
        try:
            comparison = compare(
                plan,
                out=options.out,
                folder=options.resume,
                truth=has_truth(plan),
                command=command,
                watch=watch,
            )
        finally:
            announcer.reporter.close()
    return comparison, stop


def show(comparison: Comparison, *, as_json: bool) -> None:
    """The table and the folder, or what comparison.json holds with the paths."""
    from splatgen.loop.comparison import FILE, SHEET

    folder = comparison.folder
    if as_json:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        paths = {"folder": folder, "sheet": folder / SHEET, "comparison": folder / FILE}
        print(json.dumps({**{key: str(path) for key, path in paths.items()}, **content}), flush=True)
    else:
        print(f"{table(comparison)}\n\n{folder}", flush=True)


COLUMNS = {  # measure: (title, decimals); rewards come before these
    "truth/iou": ("IoU", 3),
    "truth/psnr": ("PSNR dB", 2),
    "truth/color_error": ("colour error", 3),
    "truth/judged_right": ("judged right", 2),
    "truth/all_right": ("all right", 2),
    "cost/model_calls": ("calls/step", 1),
    "cost/seconds": ("seconds", 1),
}


def columns(plan: ComparisonPlan) -> dict[str, tuple[str, int]]:
    """Title and decimals of what a comparison can measure."""
    rewards = {f"reward/{name}": (name, 3) for name in plan.first.rewards()}
    held_out = {f"holdout/{name}": (f"{name} (held out)", 3) for name in plan.first.holdout_reward}
    return {**rewards, **held_out, **COLUMNS}


def table(comparison: Comparison) -> str:
    """A row a method, as Markdown that also reads well as it is."""
    from splatgen.loop.comparison import values

    plan = comparison.plan
    measured = summarise(values(comparison))
    present = {name for measures in measured.values() for name in measures}
    shown = {name: column for name, column in columns(plan).items() if name in present}
    rows = [["method", "runs", *(title for title, _ in shown.values())]]
    for method, measures in measured.items():
        cells = [
            (cost if name.startswith("cost/") else cell)(measures.get(name), decimals)
            for name, (_, decimals) in shown.items()
        ]
        rows.append(
            [method, runs_done([o.status for o in comparison.outcomes if o.method == method]), *cells]
        )
    return f"{aligned(rows)}\n\n{legend(measured)}"


def runs_done(statuses: Sequence[str]) -> str:
    """`2/3, 1 diverged`."""
    others = Counter(status for status in statuses if status != "done")
    parts = [f"{statuses.count('done')}/{len(statuses)}", *(f"{n} {status}" for status, n in others.items())]
    return ", ".join(parts)


def cell(measure: Measure | None, decimals: int) -> str:
    """`0.812 (+0.028 ±0.011)`: the mean, the difference to the first method, half its interval."""
    if measure is None:
        return "-"
    text = f"{measure.mean:.{decimals}f}"
    difference = measure.difference
    if difference is None:
        return text
    spread = "" if difference.half is None else f" ±{difference.half:.{decimals}f}"
    return f"{text} ({difference.mean:+.{decimals}f}{spread})"


def cost(measure: Measure | None, decimals: int) -> str:
    """`10.0 (x2.50)`: the mean, and how many times the first method's it is."""
    text = cell(None if measure is None else dataclasses.replace(measure, difference=None), decimals)
    if measure is None or measure.difference is None:
        return text
    before = measure.mean - measure.difference.mean
    return f"{text} (x{measure.mean / before:.2f})" if before > 0 else text


def legend(measured: dict[str, dict[str, Measure]]) -> str:
    """How to read the table, with the number of pairs."""
    differences = [m.difference for measures in measured.values() for m in measures.values()]
    pairs = sorted({difference.n for difference in differences if difference is not None})
    if not pairs:
        return "Means over the seeds."
    first = next(iter(measured))
    n = f"n = {pairs[0]}" if len(pairs) == 1 else f"n = {pairs[0]} to {pairs[-1]}"
    interval = " ± half its 95 % confidence interval (Student's t)" if pairs[-1] > 1 else ""
    return f"Means over the seeds; in brackets the paired difference to {first}{interval}, {n}."


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table with straight columns; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
