"""Every method, paired, on captions that training never saw: on the toybox, or on the shelf.

    python benchmarks/alignment.py --out benchmarks/results/alignment-DATE-cpu.json
    python benchmarks/alignment.py --captions 2 --seeds 1 --arms sds dpo     a quick look
    python benchmarks/alignment.py --prior shelf --captions 24 --seconds 480 --workers 8
    python benchmarks/alignment.py --prior shelf --weights FOLDER            a prior of another training

All arms see the same cameras, times and noises. Rows go to a .jsonl as they finish; run the command again to
continue, on this machine or another. Captions of the toybox: relations, patterns and fronts, others than
toybox_quality's; of the shelf: pairs and colours in turn, those of shelf_quality. The shelf needs its models
(SPLATGEN_SHELF). Networks run on the GPU where there is one.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignment_arms import arms, shelf_arms
from alignment_worlds import WORLDS, Columns, World
from pooled import results

from splatgen.config import from_dict, merge
from splatgen.runs.machine import machine_name
from splatgen.runs.statistics import Difference, holm, paired_difference

PACKAGED = "packaged"  # the weights that come with the program

Task = tuple[str, dict[str, Any], tuple[str, str], str, Path | None]
# arm, settings, kind and caption, name of the prior's weights, where to keep splats


def measure(task: Task) -> dict[str, Any]:
    """One arm, caption and seed in this process."""
    import torch

    from splatgen import formats
    from splatgen.loop import object_run
    from splatgen.runs import run_folder
    from splatgen.runs.metrics import read_metrics

    torch.set_num_threads(1)
    arm, settings, (kind, text), weights, folder = task
    world = WORLDS[settings["prior"]]
    config = merge(from_dict(world.base()), {**settings, "prompt": text})
    begin, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as out:
        made = object_run.generate(config, out=Path(out), command=["benchmarks/alignment.py"])
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        splats = formats.load(made.run.splats_ply)
        rewards = run_folder.read(made.run)["rewards"]
        rows = read_metrics(made.run.metrics)
    if folder:
        name = f"{text}-{config.seed}-{arm}".replace(" ", "-").replace(",", "").replace("=", "")
        formats.save(splats, folder / f"{name}.ply")
    calls = statistics.fmean(row["guidance/model_calls"] / config.views.count for row in rows)
    return {
        "arm": arm,
        "caption": text,
        "kind": kind,
        "seed": config.seed,
        "weights": weights,
        "reward": rewards[f"reward/{world.reward}"],
        "holdout": rewards[f"holdout/{world.judge}"],
        **world.evaluate(splats, text),
        "calls": round(calls, 2),
        "view_calls": round(calls * config.steps),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def attempt(task: Task) -> dict[str, Any]:
    """The row of a run, or what ended it: one that diverges must not end those that come after it."""
    try:
        return measure(task)
    except (RuntimeError, ArithmeticError, ValueError, OSError) as error:
        arm, settings, (_, text), _, _ = task
        told = f"{arm} | {text}, seed {settings['seed']}: {type(error).__name__}: {error}"
        return {"failed": told.partition("\n")[0]}


def tasks(args: argparse.Namespace) -> Iterator[Task]:
    """Captions and seeds outside, arms inside: what is finished is paired."""
    world = WORLDS[args.prior]
    known = world.arms(args.steps)
    captions = world.captions(args.captions, args.salt)
    prior: dict[str, Any] = {"prior": args.prior, "steps": args.steps}
    if args.weights:
        prior["prior_options"] = {"model": str(args.weights)}
    for n in range(args.captions * args.seeds):
        for arm in args.arms or known:
            settings = {**prior, "seed": n // args.captions, **known[arm]}
            yield arm, settings, captions[n % args.captions], weights_name(args), args.keep


def weights_name(args: argparse.Namespace) -> str:
    return args.weights.resolve().name if args.weights else PACKAGED


Rows = Sequence[dict[str, Any]]


def by_caption(rows: Rows, key: str) -> dict[str, dict[str, float]]:
    """Means over the seeds, by arm and caption: seeds of a caption are no independent samples."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        found.setdefault(row["arm"], {}).setdefault(row["caption"], []).append(row[key])
    return {arm: {c: sum(v) / len(v) for c, v in captions.items()} for arm, captions in found.items()}


LEVEL = 0.05  # of a wrong star anywhere in a column, and of a wrong pair of stars anywhere in a table


def had(columns: Columns, rows: Rows) -> Columns:
    """Those that every row has: rows of an earlier version may lack some."""
    return {name: column for name, column in columns.items() if all(column[0] in row for row in rows)}


def differences(rows: Rows, measures: Columns) -> dict[tuple[str, str], Difference]:
    """Every arm's paired difference to SDS over captions, by arm and measure; none where one caption is."""
    found = {}
    for key, _ in measures.values():
        values = by_caption(rows, key)
        for name in values:
            difference = None if name == "sds" else paired_difference(values[name], values["sds"])
            if difference is not None and difference.p is not None:
                found[name, key] = difference
    return found


def stars(found: dict[tuple[str, str], Difference]) -> dict[tuple[str, str], str]:
    """One for a difference that stays after Holm's correction for its column, two for the whole table's."""
    values = {cell: d.p for cell, d in found.items() if d.p is not None}
    whole = holm(values)
    columns: dict[tuple[str, str], float] = {}
    for key in {key for _, key in values}:
        columns |= holm({cell: p for cell, p in values.items() if cell[1] == key})
    return {cell: "*" * ((columns[cell] <= LEVEL) + (whole[cell] <= LEVEL)) for cell in values}


def table(rows: Rows, world: World) -> str:
    """Markdown: SDS's means, then every arm's paired difference to it with a 95 % interval over captions.

    Only pairs that every arm has are counted. Intervals are of a cell alone; `stars` count all of them.
    """
    names = list(dict.fromkeys(row["arm"] for row in rows))
    held = [{(r["caption"], r["seed"]) for r in rows if r["arm"] == name} for name in names]
    common = set.intersection(*held)
    rows = [row for row in rows if (row["caption"], row["seed"]) in common]
    if not rows:
        return "No pair of caption and seed has every arm yet."
    captions = len({caption for caption, _ in common})
    measures, costs = had(world.measures, rows), had(world.costs, rows)
    found = differences(rows, measures)
    marks = stars(found)
    lines = [
        f"{len(common)} pairs of caption and seed, {captions} captions; intervals over captions, 95 % "
        f"each. Of {len(found)} differences {sum(m != '' for m in marks.values())} stay at 5 % after "
        f"Holm's correction for their column (*), {sum(m == '**' for m in marks.values())} after that "
        f"for the table (**).",
        "",
        f"| arm | {' | '.join([*measures, *costs])} |",
        "|---" * (len(measures) + len(costs) + 1) + "|",
    ]
    columns = (*measures.values(), *costs.values())
    values = {key: by_caption(rows, key) for key, _ in columns}
    for name in sorted(names, key=list(world.arms(world.steps)).index):
        cells = [name]
        for key, digits in columns:
            difference = found.get((name, key))
            if difference is None or difference.half is None:
                cells.append(f"{statistics.fmean(values[key][name].values()):.{digits}f}")
            else:
                cell = f"{difference.mean:+.{digits}f} ± {difference.half:.{digits}f} {marks[name, key]}"
                cells.append(cell.rstrip())
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(rows: Rows, world: World) -> str:
    """A table for each prior's weights."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        parts.setdefault(row.get("weights", PACKAGED), []).append(row)
    if not parts:
        return "No run is finished yet."
    if [*parts] == [PACKAGED]:
        return table(rows, world)
    return "\n\n".join(f"Prior weights: {name}\n\n{table(part, world)}" for name, part in parts.items())


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prior", choices=list(WORLDS), default="toybox")
    parser.add_argument(
        "--weights",
        type=Path,
        help="folder of another prior of the shelf and its autoencoder; rows bear the folder's name",
    )
    parser.add_argument("--captions", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    known = list(arms() | shelf_arms(0))
    parser.add_argument("--arms", nargs="*", choices=known, metavar="NAME", help="some of the arms only")
    parser.add_argument("--workers", type=int, default=2, help="processes; 0 works in this one")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no run after so many")
    parser.add_argument("--steps", type=int, help="of a run; default 120, on the shelf 300")
    parser.add_argument("--salt", default="alignment", help="another word chooses other captions (toybox)")
    parser.add_argument("--keep", type=Path, help="keep splats here")
    parser.add_argument("--rows", type=Path, default=Path("alignment.jsonl"), help="finished rows")
    parser.add_argument("--out", type=Path, help="result JSON")
    return parser


def settled(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What the command line says, held against the world that it names."""
    args = parser.parse_args()
    world = WORLDS[args.prior]
    args.steps = args.steps or world.steps
    unknown = set(args.arms or ()) - set(world.arms(args.steps))
    if unknown:
        parser.error(f"{args.prior} has no arm {min(unknown)!r}: it has {', '.join(world.arms(args.steps))}")
    if args.weights and args.prior != "shelf":
        parser.error("--weights are of the shelf's prior: give --prior shelf too")
    if args.weights and not args.weights.is_dir():
        parser.error(f"{args.weights} is no folder: give the one that holds prior and autoencoder")
    try:
        world.needs()
    except RuntimeError as error:
        parser.error(str(error))
    return args


def key(row: dict[str, Any]) -> tuple[str, str, int, str]:
    return row["arm"], row["caption"], row["seed"], row.get("weights", PACKAGED)


def main() -> None:
    args = settled(options())
    world = WORLDS[args.prior]
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()] if args.rows.exists() else []
    done = {key(row) for row in rows}
    todo = [t for t in tasks(args) if (t[0], t[2][1], t[1]["seed"], t[3]) not in done]
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    failed = []
    for row in results(attempt, todo, args.workers, args.seconds):
        if "failed" in row:
            failed.append(row["failed"])
            print(f"failed: {failed[-1]}", file=sys.stderr, flush=True)
            continue
        rows.append(row)
        with args.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        figures = f"reward {row['reward']:.3f}, held out {row['holdout']:.3f}, {row['psnr']:.1f} dB"
        print(f"{len(rows)}/{len(done) + len(todo)} {row['arm']} | {row['caption']}: {figures}", flush=True)
    print(tables(rows, world))
    if args.out:
        report = {
            "date": datetime.now(UTC).strftime("%Y%m%d"),
            "machine": machine_name(),
            "prior": args.prior,
            "base": world.base(),
            "arms": world.arms(args.steps),
            "table": tables(rows, world),
            "rows": rows,
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    if failed:
        sys.exit(f"{len(failed)} runs failed and have no row: the same command tries them again")


if __name__ == "__main__":
    main()
