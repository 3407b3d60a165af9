"""What the preset `refine` does to objects whose truth is known: close to it before and after, in pairs.

    python benchmarks/refine.py                              the toybox: 12 captions that training never saw
    python benchmarks/refine.py --world shelf --captions 8   the shelf: things alone (SPLATGEN_SHELF)
    python benchmarks/refine.py --set refine.time=0.2        another setting, over every stage of the preset

Each object is made with its world's own preset, then refined from its file. Pictures are compared at 64 and
256 px from views that guided neither. Rows go to --rows as they finish; run the command again to continue.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pooled import results
from shelf_quality import singles
from toybox_quality import held_out_captions, settings

from splatgen.config import from_dict, merge, read_preset, to_dict
from splatgen.runs.machine import machine_name
from splatgen.runs.statistics import paired_difference

SIZES = (64, 256)
MEASURES = tuple(f"{name}_{size}" for size in SIZES for name in ("iou", "psnr", "color_error"))
Task = tuple[
    str, str, int, dict[str, Any], dict[str, Any], Path | None
]  # world, caption, seed, settings, changes, kept


def truth_of(world: str, text: str) -> Callable[[Any, Any], Any]:
    """The exact picture of a caption: (cameras, background) to rgb and alpha."""
    if world == "shelf":
        from splatgen.worlds.shelf import grammar, scenes

        wanted = grammar.parse(text)
        return lambda cameras, back: scenes.ground_truth(wanted, cameras, back)
    from splatgen.worlds.toybox import grammar as toybox_grammar
    from splatgen.worlds.toybox import world as toybox_world

    caption = toybox_grammar.parse(text)
    return lambda cameras, back: toybox_world.ground_truth(caption, cameras, back)


def compared(splats: Any, exact: Callable[[Any, Any], Any]) -> dict[str, float]:
    """Silhouette IoU, PSNR and colour error at both sizes, means over eight unseen views."""
    import torch

    from splatgen.rasterizer import render
    from splatgen.worlds.toybox.evaluation import compare, unseen_cameras

    found: dict[str, float] = {}
    grey = torch.full((3,), 0.5)
    for size in SIZES:
        cameras = unseen_cameras(size)
        truth = exact(cameras, grey)
        with torch.no_grad():
            seen = render(splats, cameras, grey)
        numbers = compare(seen.rgb.clamp(0, 1), seen.alpha, truth.rgb, truth.alpha)
        found |= {
            f"{name}_{size}": n for name, n in zip(("iou", "psnr", "color_error"), numbers, strict=True)
        }
    return found


def measure(task: Task) -> dict[str, Any]:
    """One object, made and refined in this process."""
    import torch

    from splatgen import formats
    from splatgen.loop import object_run

    torch.set_num_threads(1)
    world, text, seed, base, changes, kept = task
    exact, command = truth_of(world, text), ["benchmarks/refine.py"]
    with tempfile.TemporaryDirectory() as out:
        file = (kept or Path(out)) / f"{text.replace(' ', '-')}-{seed}.ply"
        if not file.is_file():
            given = from_dict({**base, "prompt": text, "seed": seed})
            formats.save(
                formats.load(object_run.generate(given, out=Path(out), command=command).run.splats_ply), file
            )
        start = formats.load(file)
        begin, cpu = time.perf_counter(), time.process_time()
        given = merge(from_dict(changes), {"prompt": text, "seed": seed, "init": str(file)})
        made = object_run.generate(given, out=Path(out), command=command)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        after = formats.load(made.run.splats_ply)
    return {
        "world": world,
        "caption": text,
        "seed": seed,
        "before": compared(start, exact),
        "after": compared(after, exact),
        "splats": [len(start), len(after)],
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
    }


def refinement(prior: str, changes: Sequence[str]) -> dict[str, Any]:
    """The preset's settings for a prior; those of `refine` among the changes NAME=JSON reach every stage."""
    preset, changed = read_preset("refine"), settings(changes)
    own = changed.pop("refine", {})
    stages = [{**stage, "refine": {**stage["refine"], **own}} for stage in preset["stages"]]
    return {**to_dict(merge(from_dict({**preset, "prior": prior}), changed)), "stages": stages}


def tasks(args: argparse.Namespace) -> list[Task]:
    captions = singles(args.captions) if args.world == "shelf" else held_out_captions(args.captions)
    base = {**read_preset(args.world), **settings([f'prior="{args.prior or args.world}"'])}
    base |= {"steps": args.steps} if args.steps else {}
    changes = refinement(args.prior or args.world, args.set)
    return [
        (args.world, str(caption), seed, base, changes, args.keep)
        for caption in captions
        for seed in range(args.seeds)
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means before and after, and the paired difference with its 95 % interval, as Markdown."""
    lines = ["| | before | after | difference |", "|---|---|---|---|"]
    for name in MEASURES:
        before, after = (dict(enumerate(row[when][name] for row in rows)) for when in ("before", "after"))
        gain = paired_difference(after, before)
        assert gain is not None, "there are no rows"
        digits = 2 if "psnr" in name else 4
        cells = [f"{sum(values.values()) / len(rows):.{digits}f}" for values in (before, after)]
        cells.append(f"{gain.mean:+.{digits}f} ± {gain.half or 0.0:.{digits}f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=("toybox", "shelf"), default="toybox")
    parser.add_argument("--captions", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--prior", help="another prior of the same world, such as toybox-mini")
    parser.add_argument("--steps", type=int, help="of the objects that are refined")
    parser.add_argument("--workers", type=int, default=2, help="processes; 0 works in this one")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=JSON", help="a setting of the refinement"
    )
    parser.add_argument("--keep", type=Path, help="keep the objects here; refine again what is here")
    parser.add_argument("--rows", type=Path, help="where finished rows are kept, to continue from")
    parser.add_argument("--out", type=Path, help="result JSON")
    args = parser.parse_args()
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    kept = args.rows.read_text(encoding="utf-8").splitlines() if args.rows and args.rows.exists() else []
    rows = [json.loads(line) for line in kept]
    done = {(row["caption"], row["seed"]) for row in rows}
    for row in results(measure, [t for t in tasks(args) if (t[1], t[2]) not in done], args.workers):
        rows.append(row)
        if args.rows:
            with args.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        gain = row["after"]["psnr_256"] - row["before"]["psnr_256"]
        print(
            f"{len(rows)}: {row['caption']}: {gain:+.2f} dB at 256 px, {row['cpu_seconds']:.0f} s of CPU",
            flush=True,
        )
    print(table(rows))
    if args.out:
        report = {
            "date": datetime.now(UTC).strftime("%Y%m%d"),
            "machine": machine_name(),
            "settings": args.set,
            "table": table(rows),
            "config": refinement(args.prior or args.world, args.set),
            "rows": sorted(rows, key=lambda r: (r["caption"], r["seed"])),
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
