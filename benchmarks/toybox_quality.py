"""Quality of generated objects against the toybox's ground truth, on captions training never saw.

    python benchmarks/toybox_quality.py                      24 captions x 2 seeds
    python benchmarks/toybox_quality.py --captions 6 --seeds 1 --set guidance.scale=1.5

Rows go to a .jsonl as they finish; run the command again to continue. The ceiling is the same splats and
optimiser fitted straight to exact pictures from the same random cameras.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pooled import results

from splatgen.config import Config, from_dict, to_dict
from splatgen.runs.machine import machine_name
from splatgen.worlds.toybox.grammar import Caption, kind, parse
from splatgen.worlds.toybox.sampling import captions_by_kind

SHARES = {"single": 4, "front": 4, "pattern": 4, "stacked": 7, "beside": 5}  # of 24
MEASURES = ("iou", "psnr", "color_error", "nearest_right", "judged_right", "judged_right_truth")


def held_out_captions(count: int) -> list[Caption]:
    """A fixed choice of unseen captions, spread over the kinds; the first n of a longer list."""
    source = random.Random("quality")
    pools = captions_by_kind(True)
    picked = {name: source.sample(pools[name], min(n * 4, len(pools[name]))) for name, n in SHARES.items()}
    order = ["stacked", "single", "beside", "pattern", "front", "stacked"] * count
    found: list[Caption] = []
    used = dict.fromkeys(SHARES, 0)
    limit = {name: max(1, round(n * count / 24)) for name, n in SHARES.items()}
    for name in order:
        if len(found) < count and used[name] < min(len(picked[name]), limit[name] + (count > 24)):
            found.append(picked[name][used[name]])
            used[name] += 1
    return found


Pictures = Callable[[Any, Any], Any]  # (cameras, backgrounds [B, 3]) to exact pictures [B, 3, H, W]


def fit_truth(config: Config, exact: Pictures) -> Any:
    """Splats optimised on exact pictures with the run's own cameras, rates and densification: the ceiling."""
    import torch

    from splatgen.guidance.distillation import inject
    from splatgen.loop.initial_splats import starting_splats
    from splatgen.loop.step import descend, render_views
    from splatgen.runs.rng import rng
    from splatgen.scene.backgrounds import backgrounds
    from splatgen.scene.parameters import new_scene

    scene = new_scene(config, starting_splats(config), "cpu")
    while scene.step < config.steps:
        out, cameras = render_views(config, scene, scene.step / config.steps)
        back = backgrounds(config.views.background, rng(config.seed, scene.step, "background"), len(cameras))
        inject(out.rgb, out.rgb.detach() - exact(cameras, back))
        descend(config, scene, out, torch.tensor(True))
        scene.step += 1
    return scene.splats.detach()


Task = tuple[str, dict[str, Any], bool, Path | None]  # caption, settings, ceiling, where to keep the splats


def measure(task: Task) -> dict[str, Any]:
    """One caption and seed in this process: generate (or fit), evaluate."""
    import torch

    from splatgen import formats
    from splatgen.loop import object_run
    from splatgen.models.budget import LoadOptions
    from splatgen.rewards import load_reward
    from splatgen.worlds.toybox.evaluation import evaluate
    from splatgen.worlds.toybox.world import ground_truth

    torch.set_num_threads(1)
    text, settings, ceiling, folder = task
    config = from_dict({**settings, "prompt": text})
    caption = parse(text)
    begin, cpu = time.perf_counter(), time.process_time()
    kept = (
        folder / f"{text.replace(' ', '-')}-{'ceiling' if ceiling else config.seed}.ply" if folder else None
    )
    if kept and kept.is_file():
        splats = formats.load(kept)
    elif ceiling:
        splats = fit_truth(
            config, lambda cameras, back: ground_truth(caption, cameras, back, supersample=2).rgb
        )
    else:
        with tempfile.TemporaryDirectory() as out:
            made = object_run.generate(config, out=Path(out), command=["benchmarks/toybox_quality.py"])
            splats = formats.load(made.run.splats_ply)
    if kept and not kept.is_file():
        formats.save(splats, kept)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    quality = evaluate(splats, caption, load_reward("toybox-judge", LoadOptions()))
    return {
        "caption": text,
        "kind": kind(caption),
        "seed": config.seed,
        "ceiling": ceiling,
        **quality.row(),
        "splats": len(splats),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
    }


def settings(changes: Sequence[str]) -> dict[str, Any]:
    """Settings of a run that leaves little behind, with changes NAME=JSON."""
    found: dict[str, Any] = {"output": {"frames": 0, "size": 16, "checkpoint_seconds": 0.0}}
    for item in changes:
        name, value = item.split("=", 1)
        table = found
        *groups, leaf = name.split(".")
        for group in groups:
            table = table.setdefault(group, {})
        table[leaf] = json.loads(value)
    return found


def tasks(args: argparse.Namespace) -> Iterator[Task]:
    chosen = settings(args.set)
    for caption in held_out_captions(args.captions):
        for seed in range(args.seeds):
            yield str(caption), {**chosen, "seed": seed}, False, args.keep
        if args.ceiling:
            yield str(caption), chosen, True, args.keep


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means by kind and overall, as Markdown."""
    lines = [
        "| kind | n | IoU | PSNR dB | colour error | nearest right | judged right | truth judged right |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for ceiling in (False, True):
        for name in (*SHARES, "all"):
            group = [r for r in rows if r["ceiling"] == ceiling and name in (r["kind"], "all")]
            if not group:
                continue
            means = [sum(r[m] for r in group) / len(group) for m in MEASURES]
            label = f"{'ceiling: ' if ceiling else ''}{name}"
            cells = [label, str(len(group)), *(f"{m:.1f}" if m > 2 else f"{m:.3f}" for m in means)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--ceiling", action="store_true", help="also fit splats to the exact pictures")
    parser.add_argument("--workers", type=int, default=2, help="processes; 0 works in this one")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=JSON", help="a setting, e.g. guidance.scale=1.5"
    )
    parser.add_argument("--keep", type=Path, help="keep splats here; judge again what is here")
    parser.add_argument("--rows", type=Path, help="where finished rows are kept, to continue from")
    parser.add_argument(
        "--out", type=Path, help="result JSON (default benchmarks/results/toybox-quality-DATE.json)"
    )
    args = parser.parse_args()
    date = datetime.now(UTC).strftime("%Y%m%d")
    rows_path = (
        args.rows or Path(tempfile.gettempdir()) / f"toybox-quality-{abs(hash(tuple(args.set)))}.jsonl"
    )
    rows = (
        [json.loads(line) for line in rows_path.read_text().splitlines()]
        if args.rows and rows_path.exists()
        else []
    )
    done = {(r["caption"], r["seed"], r["ceiling"]) for r in rows}
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    todo = [t for t in tasks(args) if (t[0], t[1].get("seed", 0), t[2]) not in done]
    for row in results(measure, todo, args.workers):
        rows.append(row)
        if args.rows:
            with rows_path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(
            f"{len(rows)}/{len(done) + len(todo)} {row['caption']}: IoU {row['iou']:.3f}, "
            f"{row['psnr']:.1f} dB, right {row['judged_right']:.2f}, {row['seconds']:.0f} s",
            flush=True,
        )
    print(table(rows))
    if args.out:
        report = {
            "date": date,
            "machine": machine_name(),
            "settings": args.set,
            "config": to_dict(Config()),
            "rows": sorted(rows, key=lambda r: (r["ceiling"], r["caption"], r["seed"])),
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
