"""Quality of generated objects against the shelf's ground truth, by kind and by noun.

    python benchmarks/shelf_quality.py                  40 things, 24 pairs and 16 colours, 2 seeds
    python benchmarks/shelf_quality.py --singles 12 --pairs 6 --colours 4 --seeds 1 --rows rows.jsonl

Pairs and colours are those that training never showed. Views guided nothing. Rows go to --rows as they
finish; run the command again to continue. The ceiling is the same splats and optimiser fitted straight to
exact pictures. It needs the shelf's models (SPLATGEN_SHELF, or a folder `shelf` beside the repository).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pooled import results
from toybox_quality import fit_truth, settings

from splatgen.config import from_dict, merge, read_preset
from splatgen.runs.machine import machine_name
from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.grammar import Caption, Item, parse
from splatgen.worlds.shelf.sampling import RELATIONS, held_out_colors, held_out_pair

MEASURES = (
    "iou", "psnr", "psnr_256", "color_error", "nouns_right", "places_right", "all_right", "all_right_truth",
    "nearest_right",
)  # fmt: skip
KINDS = ("single", "pair", "colour")

Task = tuple[str, str, dict[str, Any], bool, Path | None]  # kind, caption, settings, ceiling, for splats


def singles(count: int) -> list[Caption]:
    """Nouns from every group in turn, in the catalogue's order; the first n of a longer list."""
    groups = [list(group) for group in catalogue().groups().values()]
    turns = [group[n] for n in range(max(map(len, groups))) for group in groups if n < len(group)]
    return [Caption(Item(noun.name)) for noun in turns[:count]]


def unseen_pairs(count: int) -> list[Caption]:
    """A fixed choice of pairs that training never showed, half of them stacked."""
    source, nouns, found = random.Random("shelf pairs"), list(catalogue().nouns), list[Caption]()
    while len(found) < count:
        a, b = source.sample(nouns, 2)
        caption = Caption(Item(a), RELATIONS[len(found) % 2], Item(b))
        if held_out_pair(caption):
            found.append(caption)
    return found


def unseen_colours(count: int) -> list[Caption]:
    """A fixed choice of nouns in colours that training never showed."""
    pool = sorted(held_out_colors())
    random.Random("shelf colours").shuffle(pool)
    return [Caption(Item(noun, color)) for noun, color in pool[:count]]


def measure(task: Task) -> dict[str, Any]:
    """One caption and seed in this process: generate (or fit), evaluate."""
    import torch

    from splatgen import formats
    from splatgen.loop import object_run
    from splatgen.models.budget import LoadOptions
    from splatgen.rewards.shelf import load_judge
    from splatgen.worlds.shelf.evaluation import SIZES, evaluate, examination, seen
    from splatgen.worlds.shelf.nearest import share_ahead
    from splatgen.worlds.shelf.scenes import ground_truth

    torch.set_num_threads(1)
    kind, text, chosen, ceiling, folder = task
    config = merge(from_dict(read_preset("shelf")), {**chosen, "prompt": text})
    caption = parse(text)
    begin, cpu = time.perf_counter(), time.process_time()
    if ceiling:
        splats = fit_truth(config, lambda cameras, back: ground_truth(caption, cameras, back).rgb)
    else:
        with tempfile.TemporaryDirectory() as out:
            made = object_run.generate(config, out=Path(out), command=["benchmarks/shelf_quality.py"])
            splats = formats.load(made.run.splats_ply)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{text.replace(' ', '-')}-{'ceiling' if ceiling else config.seed}.ply"
        formats.save(splats, folder / name)
    quality = evaluate(splats, caption, load_judge(LoadOptions()))
    images, _ = seen(splats, examination(caption, SIZES[0]).cameras)
    return {
        "kind": kind,
        "caption": text,
        "seed": config.seed,
        "ceiling": ceiling,
        **quality.row(),
        "nearest_right": float(share_ahead(images, caption) == 1.0),
        "splats": len(splats),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
    }


def tasks(args: argparse.Namespace) -> list[Task]:
    """Every run, the seeds of a caption one after the other."""
    chosen = settings([f'prior="{args.prior}"', *args.set])
    lists = (singles(args.singles), unseen_pairs(args.pairs), unseen_colours(args.colours))
    found: list[Task] = []
    for kind, captions in zip(KINDS, lists, strict=True):
        for caption in map(str, captions):
            seeds = [{**chosen, "seed": seed} for seed in range(args.seeds)]
            found += [(kind, caption, settings, False, args.keep) for settings in seeds]
            if args.ceiling:
                found.append((kind, caption, chosen, True, args.keep))
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means by kind and overall, as Markdown."""
    lines = [
        "| kind | n | IoU | PSNR dB | at 256 px | colour error | nouns | places | all right | of truth "
        "| nearest |",
        "|---" * (2 + len(MEASURES)) + "|",
    ]
    for ceiling in (False, True):
        for name in (*KINDS, "all"):
            group = [r for r in rows if r["ceiling"] == ceiling and name in (r["kind"], "all")]
            if group:
                means = [sum(r[m] for r in group) / len(group) for m in MEASURES]
                cells = (f"{m:.1f}" if m > 2 else f"{m:.3f}" for m in means)
                label = f"{'ceiling: ' if ceiling else ''}{name}"
                lines.append(f"| {' | '.join([label, str(len(group)), *cells])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--singles", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--colours", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--ceiling", action="store_true", help="also fit splats to the exact pictures")
    parser.add_argument("--prior", default="shelf")
    parser.add_argument("--workers", type=int, default=2, help="processes; 0 works in this one")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="a setting")
    parser.add_argument("--keep", type=Path, help="keep splats here")
    parser.add_argument("--rows", type=Path, help="where finished rows are kept, to continue from")
    parser.add_argument("--out", type=Path, help="result JSON")
    args = parser.parse_args()
    kept = args.rows.read_text(encoding="utf-8").splitlines() if args.rows and args.rows.exists() else []
    rows = [json.loads(line) for line in kept]
    done = {(r["caption"], r["seed"], r["ceiling"]) for r in rows}
    todo = [t for t in tasks(args) if (t[1], t[2].get("seed", 0), t[3]) not in done]
    for row in results(measure, todo, args.workers):
        rows.append(row)
        if args.rows:
            with args.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        told = f"IoU {row['iou']:.3f}, {row['psnr']:.1f} dB, all right {row['all_right']:.2f}"
        print(f"{len(rows)}: {row['caption']}: {told}, {row['seconds']:.0f} s", flush=True)
    print(table(rows))
    if args.out:
        report = {
            "date": datetime.now(UTC).strftime("%Y%m%d"),
            "machine": machine_name(),
            "settings": args.set,
            "table": table(rows),
            "rows": sorted(rows, key=lambda r: (r["ceiling"], r["kind"], r["caption"], r["seed"])),
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
