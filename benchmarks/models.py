"""What a step costs with full-size models: `python benchmarks/models.py --out FILE`, on a CUDA device.

The models are Stable Diffusion 1.5, MVDream and HPSv2 as published, but of random weights, which need no
download and cost the same. --tiny takes small ones, on the CPU too: that tries this file, and its numbers say
nothing.

    steps    a step by stage, its model calls and peak memory, over the same network calls by themselves
    limits   whether steps fit into so many GB, with torch's allocator bounded to them
    halving  a first step that runs out of memory and goes on with half the batches
    naive    against the step as one writes it down first (naive_step.py), which must find the same G
    compile  (--compile) with the UNet compiled, and after how many steps that pays

All times t are 0.5, so that every step makes the same calls. The report is written anew after each row; a row
that could not be measured says why. Exits with 1 where one failed otherwise than for want of memory, CUDA or
time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from costs import MEASURES, METHODS, SETTINGS, TIME, Bench, Job, Row
from measuring import Card, Device, NotMeasured, Processor, environment

from splatgen.models.budget import BUDGETS
from splatgen.models.memory import is_out_of_memory
from splatgen.runs import atomic

RATIO = 1.10  # aim: a step over its network calls
COMPILED = ("sds", "weighted-4", "psd")
PSD, REWARD_SDS = "PSD on SD 1.5 within 8 GB", "RewardSDS (N = 4) on SD 1.5 within 10 GB"
HOLDS, HALVES = "every budget holds what its name says", "a step that runs out of memory goes on with half"
NO_CUDA = "no CUDA device is usable here"
NEEDS = f"{NO_CUDA}: this needs one of 12 GB or more; --tiny tries the same steps on a CPU"


def plan(
    settings: Sequence[str] = tuple(SETTINGS),
    methods: Sequence[str] = tuple(METHODS),
    budgets: Sequence[str] = tuple(BUDGETS),
    compiled: bool = False,
) -> list[Job]:
    """What to measure, the most wanted first; by prior, since networks are made anew for each."""
    cells = [(setting, method) for setting in settings for method in methods]

    def section(name: str, budget: str = "none", only: Sequence[str] = methods) -> list[Job]:
        return [
            Job(section=name, setting=setting, method=method, budget=budget)
            for setting, method in cells
            if method in only
        ]

    jobs = section("steps") if "none" in budgets else []
    jobs += [job for job in limits(budgets) if (job.setting, job.method) in cells and job.budget in budgets]
    jobs += section("naive")
    jobs += [job for budget in budgets if budget != "none" for job in section("steps", budget)]
    return jobs + (section("compile", only=COMPILED) if compiled else [])


def limits(budgets: Sequence[str]) -> Iterator[Job]:
    """What has to fit into how many GB, and a step that has to run out of memory."""
    smallest = ("psd-every", "8gb", 8.0, PSD)
    for method, budget, gigabytes, target in (
        smallest,
        ("weighted-4", "8gb", 10.0, REWARD_SDS),
        ("psd-every", "none", 12.0, None),
        ("weighted-4", "none", 10.0, None),
    ):
        yield Job(
            section="limits",
            setting="sd15x4",
            method=method,
            budget=budget,
            gigabytes=gigabytes,
            target=target,
        )
    yield Job(section="halving", setting="sd15x4", method="weighted-4", target=HALVES)
    for setting in ("sd15x4", "mvdreamx4"):
        for method in ("psd-every", "weighted-8x15"):
            for budget in budgets:
                if budget != "none" and (setting, method, budget) != ("sd15x4", *smallest[:2]):
                    yield Job(
                        section="limits",
                        setting=setting,
                        method=method,
                        budget=budget,
                        gigabytes=float(budget.removesuffix("gb")),
                        target=HOLDS,
                    )


def measure(bench: Bench, job: Job) -> Row:
    """A row, whatever happens to it."""
    try:
        found = MEASURES[job.section](bench, job)
    except NotMeasured as reason:
        found = {"not measured": str(reason)}
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            found = {"not measured": "out of memory"}
        else:
            found = {"failed": f"{type(error).__name__}: {error}"[:1000]}
    bench.device.reset()  # not above: until here, the error holds the tensors of the step
    row: Row = job.named() | rounded(found)
    return row


def rounded(value: Any) -> Any:
    """Floats with four digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return value


def targets(rows: Sequence[Row]) -> dict[str, str]:
    """What the rows say of the aims: met, not met, or not measured."""
    found = {f"a step over its network calls, at most {RATIO}": worst_ratio(rows)}
    for target in (PSD, REWARD_SDS, HOLDS, HALVES):
        about = [row for row in rows if row.get("target") == target]
        missed = [row for row in about if not row.get("fits", True)]
        if missed:
            names = (f"{row['prior']} {row['method']} {row['budget']}" for row in missed)
            found[target] = f"not met: {', '.join(names)}"
        else:
            found[target] = "met" if about and all("fits" in row for row in about) else "not measured"
    return found


def worst_ratio(rows: Sequence[Row]) -> str:
    steps = [row for row in rows if row["section"] == "steps" and "ratio" in row]
    if not steps:
        return "not measured"
    worst = max(steps, key=lambda row: float(row["ratio"]))
    where = f"{worst['prior']} x {worst['views']} {worst['method']} {worst['budget']}"
    return f"{'met' if worst['ratio'] <= RATIO else 'not met'}: {worst['ratio']} at worst, {where}"


def line(row: Row) -> str:
    """A row for people."""
    names = ("section", "prior", "views", "method", "budget")
    shown: tuple[str, ...] = (
        "not measured",
        "failed",
        "step_ms",
        "naive_ms",
        "compiled_ms",
        "ratio",
        "peak_gb",
    )
    shown += ("difference", "fits", "gigabytes", "halved", "compile_s", "pays_after_steps")
    values = [f"{name} {row[name]}" for name in shown if name in row]
    return f"{' '.join(str(row[name]) for name in names)}: {', '.join(values)}"


def report(device: Device, settings: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    date = datetime.now(UTC).strftime("%Y%m%d")
    return {
        "date": date,
        **environment(device),
        **settings,
        "time": TIME,
        "targets": {} if settings["tiny"] else targets(rows),
        "rows": list(rows),
    }


def run(
    bench: Bench, jobs: Sequence[Job], *, until: float, settings: dict[str, Any], out: Path | None
) -> bool:
    """All rows; says whether none failed."""
    rows = [job.named() | {"not measured": "the time was up"} for job in jobs]

    def write() -> None:
        if out is not None:
            atomic.write_json(out, report(bench.device, settings, rows))

    write()  # a folder that is not there is told now
    for n, job in enumerate(jobs):
        if time.monotonic() < until:
            rows[n] = measure(bench, job)
            print(line(rows[n]), flush=True)
            write()
    for target, found in ({} if bench.tiny else targets(rows)).items():
        print(f"{target}: {found}")
    return not any("failed" in row for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="result JSON")
    parser.add_argument("--tiny", action="store_true", help="small models, on the CPU where there is no CUDA")
    parser.add_argument("--compile", action="store_true", help="and with the UNet compiled")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no row is begun")
    args = parser.parse_args(argv)
    until = time.monotonic() + 60.0 * args.minutes
    jobs = plan(args.settings, args.methods, args.budgets, args.compile)
    device: Device = Card() if torch.cuda.is_available() else Processor()
    settings = {"tiny": args.tiny, "rounds": args.rounds}
    if isinstance(device, Processor) and not args.tiny:
        print(NEEDS)
        rows = [job.named() | {"not measured": NO_CUDA} for job in jobs]
        if args.out is not None:
            atomic.write_json(args.out, report(device, settings, rows))
        return 0
    bench = Bench(device=device, tiny=args.tiny, rounds=args.rounds)
    return 0 if run(bench, jobs, until=until, settings=settings, out=args.out) else 1


if __name__ == "__main__":
    sys.exit(main())
