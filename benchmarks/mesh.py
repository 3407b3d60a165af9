"""Meshes out of splats against the toybox's exact surfaces, beside the splats themselves.

    python benchmarks/mesh.py --out benchmarks/results/mesh-DATE-cpu.json
    python benchmarks/mesh.py --tiny            a few steps: it tries this file, its numbers say nothing

Splats are fitted to exact pictures from all around: what is measured is the way from splats to triangles.
Distances are in world units, of objects about 1.2 wide. accuracy: from the mesh to the true surface;
completeness: back; chamfer: their mean. normals: the cosine between the normals of nearest points, both ways.
The splats' own error takes the centres of those that are more than 10 % opaque, and their shortest axes as
normals, of either sign.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from splatgen.loop.object_snapshots import matrices
from splatgen.rasterizer import render
from splatgen.rasterizer.fusion import surface_of
from splatgen.runs.machine import machine_name
from splatgen.scene.cameras import orbit
from splatgen.scene.splats import Splats, random_ball
from splatgen.scene.surface_nets import Surface
from splatgen.worlds.toybox import world
from splatgen.worlds.toybox.grammar import Caption, parse

CAPTIONS = (
    "a red cube", "a blue sphere", "a green cylinder", "a yellow cone", "a purple torus",
    "a blue sphere on top of a green cylinder",
)  # fmt: skip
RATES = {"means": 0.006, "quats": 0.01, "scales": 0.02, "opacities": 0.05, "sh": 0.06}
OPAQUE = 0.1
MEASURES = ("accuracy", "completeness", "chamfer", "normals")


def fitted(caption: Caption, *, steps: int, count: int, size: int, seed: int) -> Splats:
    """Splats that show a caption, by Adam on exact pictures from random cameras all around."""
    generator = torch.Generator().manual_seed(seed)
    start = random_ball(generator, count=count, radius=0.75, scale=0.06, opacity=0.25)
    params = {name: value.clone().requires_grad_() for name, value in start.tensors().items()}
    optimizer = torch.optim.Adam([{"params": [params[name]], "lr": rate} for name, rate in RATES.items()])
    fall = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.3 ** (1.0 / steps))
    for _ in range(steps):
        azimuth, height = 360.0 * torch.rand(4, generator=generator), torch.rand(4, generator=generator)
        cameras = orbit(azimuth, 140.0 * height - 60.0, size=size)
        back = torch.rand(4, 3, generator=generator)
        truth = world.ground_truth(caption, cameras, back, supersample=2)
        seen = render(Splats(**params), cameras, back)
        loss = (seen.rgb - truth.rgb).square().mean() + 0.1 * (seen.alpha - truth.alpha).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        fall.step()
    return Splats(**params).detach()


def true_surface(caption: Caption, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points on the visible surface and their normals, [count, 3] each, as world.point_cloud spreads them."""
    generator = torch.Generator().manual_seed(seed)
    out, inner = normalize(torch.randn(2, 6 * count, 3, generator=generator), dim=-1)
    origins = 0.95 * inner * torch.rand(6 * count, 1, generator=generator).pow(1 / 3) + 4.0 * out
    nearest, normals = torch.full((len(out),), world.FAR), torch.zeros_like(out)
    for placed in world.place(caption):
        local = (origins - torch.tensor(placed.center)) / placed.scale
        distance, normal = world.INTERSECT[placed.item.shape](local, -out / placed.scale)
        nearer = distance < nearest
        nearest = torch.where(nearer, distance, nearest)
        normals = torch.where(nearer[:, None], normal, normals)
    hit = nearest < world.FAR
    return (origins - nearest[:, None] * out)[hit][:count], normals[hit][:count]


def on_triangles(surface: Surface, count: int) -> tuple[Tensor, Tensor]:
    """Points spread over a mesh by area, and the normals of their triangles, [count, 3] each."""
    a, b, c = (surface.vertices[surface.faces[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    areas = np.linalg.norm(normals, axis=1)
    dice = np.random.default_rng(0)
    chosen = dice.choice(len(areas), count, p=areas / areas.sum())
    u, v = dice.random((2, count, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    points = a[chosen] + u * (b - a)[chosen] + v * (c - a)[chosen]
    return torch.from_numpy(points).float(), torch.from_numpy(normals[chosen] / areas[chosen, None]).float()


def of_splats(splats: Splats) -> tuple[Tensor, Tensor]:
    """The centres of splats that can be seen, and their shortest axes."""
    splats = splats.select(splats.opacities.sigmoid() > OPAQUE)
    shortest = splats.scales.argmin(-1)
    axes = matrices(splats.quats)  # columns
    return splats.means, axes.gather(2, shortest[:, None, None].expand(-1, 3, 1))[..., 0]


def compared(found: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor], *, signed: bool) -> dict[str, float]:
    """MEASURES of points and normals [P, 3] against those of the truth."""
    there, back = _nearest(found[0], truth[0]), _nearest(truth[0], found[0])
    cosines = [(found[1] * truth[1][there[1]]).sum(-1), (truth[1] * found[1][back[1]]).sum(-1)]
    normals = torch.stack([(each if signed else each.abs()).mean() for each in cosines]).mean()
    accuracy, completeness = float(there[0].mean()), float(back[0].mean())
    values = (accuracy, completeness, (accuracy + completeness) / 2.0, float(normals))
    return {name: round(value, 4) for name, value in zip(MEASURES, values, strict=True)}


def _nearest(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the nearest of the others, and which it is, [P] each."""
    parts = [torch.cdist(part, others).min(1) for part in torch.split(points, 1000)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def row(caption: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One caption, fitted, meshed at full size and with fewer triangles, and compared."""
    count = 500 if args.tiny else 8000
    size: dict[str, int] = {"steps": 8, "count": 150, "size": 24} if args.tiny else {
        "steps": args.steps, "count": 1500, "size": 64
    }  # fmt: skip
    splats, truth = fitted(parse(caption), seed=seed, **size), true_surface(parse(caption), count)
    found: dict[str, Any] = {"caption": caption, "seed": seed}
    found["splats"] = compared(of_splats(splats), truth, signed=False)
    for name, most in (("mesh", None), ("mesh_5000", 5000)):
        begin = time.process_time()
        grid = {"grid": 24, "views": 6} if args.tiny else {}
        surface = surface_of(splats, most_faces=most, **grid)
        seconds = time.process_time() - begin
        measures = compared(on_triangles(surface, count), truth, signed=True)
        found[name] = {**measures, "faces": len(surface.faces), "cpu_seconds": round(seconds, 1)}
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=250, help="of the fit")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="one caption, small, in seconds")
    parser.add_argument("--out", type=Path, help="a .json")
    args = parser.parse_args(argv)
    rows = []
    for caption in CAPTIONS[: 1 if args.tiny else None]:
        for seed in range(args.seeds):
            rows.append(row(caption, seed, args))
            print(json.dumps(rows[-1]), flush=True)
    means = {
        kind: {name: round(float(np.mean([r[kind][name] for r in rows])), 4) for name in MEASURES}
        for kind in ("splats", "mesh", "mesh_5000")
    }
    for kind, values in means.items():
        print(f"{kind:10}" + "".join(f"  {name} {value:.4f}" for name, value in values.items()))
    if args.out is not None:
        report = {
            "machine": machine_name(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": {"steps": args.steps, "seeds": args.seeds, "tiny": args.tiny},
            "means": means,
            "rows": rows,
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
