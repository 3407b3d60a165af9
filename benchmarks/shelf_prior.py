"""What the shelf's prior knows by itself: pictures it draws from noise, against exact ones, by noun.

    python benchmarks/shelf_prior.py --out benchmarks/results/shelf-prior-DATE-cpu.json
    python benchmarks/shelf_prior.py --singles 3 --pairs 1 --colours 1 --reverse 4          a quick look

Every noun, and pairs and colours that training never showed, from eight views; DDIM with guidance. What no
view shows right here stays unrecognisable. It needs the shelf's models (SPLATGEN_SHELF, or a folder `shelf`
beside the repository).
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from shelf_quality import singles, unseen_colours, unseen_pairs
from torch import Tensor

from splatgen.config import PriorOptions
from splatgen.models.budget import LoadOptions
from splatgen.priors.shelf import ShelfPrior, load
from splatgen.rewards.shelf import load_judge
from splatgen.runs.machine import machine_name
from splatgen.runs.rng import rng
from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.evaluation import Judge, examination, judged
from splatgen.worlds.shelf.grammar import Caption, Item
from splatgen.worlds.toybox.evaluation import BACKGROUND, compare

KINDS = ("single", "colour", "pair")
MEASURES = ("iou", "psnr", "nouns_right", "places_right", "all_right", "all_right_truth")
VAGUE = 0.5  # share of views: below it a noun is not recognised


@torch.no_grad()
def drawn(prior: ShelfPrior, caption: Caption, *, scale: float, reverse: int) -> Tensor:
    """Cut-outs [V, 4, S, S] of a caption by DDIM in `reverse` steps, from the views of the examinations."""
    cameras = examination(caption, prior.resolution).cameras
    count = len(cameras)
    known, empty = prior.embed([str(caption)] * count), prior.embed([""] * count)
    both = {name: torch.cat([known[name], empty[name]]) for name in known}
    x = torch.randn(
        count, prior.net.config.latents, *[prior.net.config.side] * 2, generator=rng(0, 0, str(caption))
    )
    times = torch.linspace(0.99, 0.0, reverse + 1)
    for now, after in itertools.pairwise(times):
        t = now.expand(count)
        noise = prior.predict(torch.cat([x, x]), torch.cat([t, t]), both, cameras.repeated(2))
        noise = noise[count:] + scale * (noise[:count] - noise[count:])
        (alpha, sigma), (alpha_next, sigma_next) = (
            prior.alpha_sigma(t),
            prior.alpha_sigma(after.expand(count)),
        )
        x = alpha_next * (x - sigma * noise) / alpha + sigma_next * noise
    return prior.cutouts(x)


def measure(prior: ShelfPrior, judge: Judge, kind: str, caption: Caption, **how: Any) -> dict[str, Any]:
    """One caption's pictures against the exact ones."""
    exact = examination(caption, prior.resolution)
    cutouts = drawn(prior, caption, **how)
    alpha = cutouts[:, 3:]
    rgb = (cutouts[:, :3] + (1.0 - alpha) * BACKGROUND).clamp(0.0, 1.0)
    iou, psnr, _ = compare(rgb, alpha, exact.rgb, exact.alpha)
    found, truth = (judged(judge, z, caption, exact.cameras) for z in (rgb, exact.rgb))
    values = (iou, psnr, found.nouns, found.places, found.all, truth.all)
    rounded = {name: round(value, 4) for name, value in zip(MEASURES, values, strict=True)}
    return {"kind": kind, "caption": str(caption), **rounded}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means by kind, as Markdown, and the nouns that are not recognised."""
    lines = [
        "| kind | n | IoU | PSNR dB | nouns | places | all right | of truth |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        group = [row for row in rows if row["kind"] == kind]
        if group:
            means = [sum(row[m] for row in group) / len(group) for m in MEASURES]
            cells = [f"{m:.1f}" if m > 2 else f"{m:.3f}" for m in means]
            lines.append(f"| {' | '.join([kind, str(len(group)), *cells])} |")
    vague = [row["caption"] for row in rows if row["kind"] == "single" and row["nouns_right"] < VAGUE]
    return "\n".join([*lines, "", f"Not recognised in half of the views: {', '.join(vague) or 'none'}."])


def by_noun(rows: Sequence[dict[str, Any]]) -> str:
    """PSNR of every noun by group, as Markdown."""
    psnr = {row["caption"]: row["psnr"] for row in rows if row["kind"] == "single"}
    lines = ["| group | dB |", "|---|---|"]
    for group, nouns in catalogue().groups().items():
        named = {noun.name: psnr.get(str(Caption(Item(noun.name)))) for noun in nouns}
        cells = [f"{name} {value:.0f}" for name, value in named.items() if value is not None]
        if cells:
            lines.append(f"| {group} | {', '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--singles", type=int, default=len(catalogue().nouns))
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--colours", type=int, default=16)
    parser.add_argument("--scale", type=float, default=1.5, help="of the guidance")
    parser.add_argument("--reverse", type=int, default=25, help="steps from noise to a picture")
    parser.add_argument("--weights", type=Path, help="a folder with a prior and its autoencoder")
    parser.add_argument("--out", type=Path, help="result JSON")
    args = parser.parse_args(argv)
    options = PriorOptions() if args.weights is None else PriorOptions(model=str(args.weights))
    prior, judge = load(options, LoadOptions()), load_judge(LoadOptions())
    lists = (singles(args.singles), unseen_colours(args.colours), unseen_pairs(args.pairs))
    rows = []
    for kind, captions in zip(KINDS, lists, strict=True):
        for caption in captions:
            row = measure(prior, judge, kind, caption, scale=args.scale, reverse=args.reverse)
            rows.append(row)
            print(
                f"{row['caption']}: IoU {row['iou']:.3f}, {row['psnr']:.1f} dB, right {row['all_right']:.2f}"
            )
    tables = f"{table(rows)}\n\n{by_noun(rows)}"
    print(tables)
    if args.out is not None:
        about = {"date": datetime.now(UTC).strftime("%Y%m%d"), "machine": machine_name(), "scale": args.scale}
        report = {**about, "reverse": args.reverse, "table": tables, "rows": rows}
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
