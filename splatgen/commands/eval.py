"""`splatgen eval`: finished runs measured by the papers' metrics, on the same views."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from splatgen.commands.common import checks
from splatgen.commands.common.arguments import Switch, parse
from splatgen.commands.common.errors import MISSING, USAGE, Failure
from splatgen.config import Config
from splatgen.config.hints import did_you_mean
from splatgen.models import weights
from splatgen.models.budget import load_options
from splatgen.rewards import JUDGES
from splatgen.runs.statistics import summarise
from splatgen.sweeps.table import WIDTH, aligned, cell, legend, parts, runs_done

OWN = {  # what needs no weights that others published
    "truth": "IoU, PSNR, SSIM, colours, recognised: against the exact pictures of an embedded world",
    "faces": "share of other sides from which the front is seen again (embedded worlds, exact)",
    "consistency": "how alike neighbouring frames of a turn are",
    "splats": "count, opacity, needles, floaters",
    "cost": "model calls, seconds, peak memory of the run",
}
LEFT_OUT = {"mps": "it is published as a pickled program, and nothing is unpickled here (docs/models.md)"}
VIEWS = Literal["random-10", "random-50", "turntable-120"]


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure finished runs: a table, and a row a run in a file."""

    runs: Annotated[tuple[Path, ...], Positional, arg(metavar="RUN|FOLDER ...", help_behavior_hint="")] = ()
    """Run folders, folders of sweeps and comparisons, or folders that hold runs."""
    metrics: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """What to measure; by default all that can be here (--list shows them)."""
    views: VIEWS = "random-10"
    """The set of views for what judges pictures: 10 random ones as in RewardSDS, 50 as in SDI, or a turn."""
    size: Annotated[int, arg(metavar="N")] = 256
    """Side of the pictures."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Where rows go: .jsonl, or .parquet (pip install 'splatgen[parquet]'); by default eval.jsonl in the
    first folder."""
    weights: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Where models are, one folder each by name."""
    list: Switch = False
    """List the metrics, and which of them can be measured here."""
    json: Switch = False
    """Print the rows as a JSON list."""
    quiet: Switch = False
    """No progress, only errors."""


def names(folder: Path | None) -> dict[str, str | None]:
    """Every metric, and the command that would get what it lacks; None where nothing is lacking."""
    found: dict[str, str | None] = dict.fromkeys(OWN)
    for name, entry in JUDGES.items():
        found[name] = None if entry.embedded else lacking(name, folder)
    return found


def lacking(name: str, folder: Path | None) -> str | None:
    try:
        weights.find(name, None if folder is None else str(folder))
    except weights.WeightsError:
        return f"splatgen fetch {name}"
    return None


def choose(options: Eval) -> list[str]:
    """The metrics to measure; raises Failure for those that there aren't, or whose weights aren't here."""
    known = names(options.weights)
    for name in options.metrics:
        if name in LEFT_OUT:
            raise Failure(USAGE, f"no metric {name!r}: {LEFT_OUT[name]}")
        if name not in known:
            raise Failure(USAGE, f"no metric {name[:60]!r}; {did_you_mean(name, known)}")
        if known[name] is not None:
            raise Failure(MISSING, f"the weights of {name} are not here: `{known[name]}`")
    if options.metrics:
        return list(dict.fromkeys(options.metrics))
    missing = [name for name, command in known.items() if command is not None]
    if missing and not options.quiet:
        print(f"splatgen: not here: {', '.join(missing)}: `splatgen fetch NAME`", file=sys.stderr)
    return [name for name, command in known.items() if command is None and not is_embedded(name)]


def is_embedded(name: str) -> bool:
    """Whether a metric is a reward of an embedded world, which reads that world's prompts only."""
    return name in JUDGES and JUDGES[name].embedded


def check(options: Eval) -> list[str]:
    """Everything that can fail early; returns the metrics."""
    if not options.runs:
        raise Failure(USAGE, "no runs: give run folders, or folders that hold some")
    if not 16 <= options.size <= 2048:
        raise Failure(USAGE, f"--size {options.size}: give 16 to 2048")
    if options.weights is not None and not options.weights.is_dir():
        raise Failure(
            MISSING, f"--weights {options.weights} is no folder: give one that holds models by name"
        )
    out = out_of(options)
    if out.suffix not in (".jsonl", ".parquet"):
        raise Failure(USAGE, f"--out {out}: give a file that ends in .jsonl or .parquet")
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise Failure(MISSING, f"--out {out.name} takes pyarrow: pip install 'splatgen[parquet]', or .jsonl")
    return choose(options)


def out_of(options: Eval) -> Path:
    return options.out or options.runs[0] / "eval.jsonl"


def main(argv: Sequence[str]) -> int:
    options = parse(Eval, "eval", argv)
    if options.list:
        print(listing(names(options.weights)))
        return 0
    rows = measure(options)
    print(json.dumps(rows) if options.json else f"{table(rows)}\n\n{out_of(options)}", flush=True)
    return 0


def measure(options: Eval) -> list[dict[str, Any]]:
    """A row a run, written where the options say; what can fail early does."""
    chosen = check(options)
    from splatgen.sweeps import evaluation

    found = evaluation.entries(options.runs)
    out, rows = out_of(options), list[dict[str, Any]]()
    checks.check_out(out.parent)
    try:
        for row in _measured(options, found, chosen):
            rows.append(row)
    except BaseException:  # Ctrl-C, too, leaves what has been measured, beside what an earlier one has
        if rows:
            part = out.with_name(f"{out.stem}-part{out.suffix}")
            evaluation.write_rows(part, rows)
            print(f"splatgen: the rows measured so far are in {part}", file=sys.stderr)
        raise
    evaluation.write_rows(out, rows)
    return rows


def _measured(options: Eval, found: Sequence[Any], chosen: Sequence[str]) -> Iterator[dict[str, Any]]:
    from splatgen.sweeps import evaluation
    from splatgen.sweeps.metrics import Metrics

    device = checks.resolve_device("auto").device
    given = Config(weights=None if options.weights is None else str(options.weights))
    metrics = Metrics(load_options(given, device))
    count = 0
    if not options.quiet:
        runs = "1 run" if len(found) == 1 else f"{len(found)} runs"
        print(f"splatgen: {runs}, by {', '.join(chosen)}", file=sys.stderr, flush=True)

    def tell(row: Mapping[str, Any]) -> None:
        nonlocal count
        count += 1
        if not options.quiet:
            text = f"{count}/{len(found)} {Path(row['run']).name}: {row['status']}"
            print(f"splatgen: {text}", file=sys.stderr, flush=True)

    without = 0  # runs that have no truth
    for row in evaluation.evaluate(found, chosen, options.views, options.size, metrics, tell):
        without += row["status"] == "done" and not any(key.startswith("truth/") for key in row)
        yield row
    if without and "truth" in chosen and not options.quiet:
        why = "only embedded priors' runs have one, those of the shelf where its models are (docs/shelf.md)"
        print(f"splatgen: no truth for {without} of {len(found)}: {why}", file=sys.stderr)


def listing(known: Mapping[str, str | None]) -> str:
    """A line a metric."""
    lines = []
    for name, command in known.items():
        about = OWN[name] if name in OWN else JUDGES[name].about
        lines.append(f"{name:<16} {about}{'' if command is None else f'; not here: {command}'}")
    return "\n".join(lines)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means by method, and paired differences to the first one over prompts and seeds."""
    values: dict[str, dict[str, dict[tuple[str, int], float]]] = {}
    statuses: dict[str, list[str]] = {}
    for row in rows:
        statuses.setdefault(row["method"], []).append(str(row["status"]))
        mine = values.setdefault(row["method"], {})
        for name, value in row.items():
            if isinstance(value, float):
                mine.setdefault(name, {})[(str(row["prompt"]), int(row["seed"] or 0))] = value
    measured = summarise(values)
    shown = list(dict.fromkeys(name for found in measured.values() for name in found))
    lines = [["method", "runs", "diverged", *shown]]
    for method, found in measured.items():
        lost = statuses[method].count("diverged") / len(statuses[method])
        cells = [cell(found.get(name), 3 if _small(found.get(name)) else 1) for name in shown]
        lines.append([method, runs_done(statuses[method]), f"{lost:.0%}", *cells])
    return "\n\n".join([*map(aligned, parts(lines, WIDTH)), legend(measured, "runs")])


def _small(measure: Any) -> bool:
    return measure is None or abs(measure.mean) < 100
