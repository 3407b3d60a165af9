"""How long the rasterizers of a GPU take: `python benchmarks/gpu_rasterizers.py --out FILE`, with CUDA.

Forward and backward of four views through `splatgen.rasterizer.render`, gsplat's kernels and ours in Triton
taking turns; `ratio` is Triton's median over gsplat's. The report is written anew after each row. --tiny
takes a few splats, by the CPU's rasterizer where there is no CUDA: that tries this file. Exits with 1 where
a row failed.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from measuring import Card, Device, Processor, environment, medians

from splatgen.rasterizer import render
from splatgen.rasterizer.backends import BACKENDS, PROBLEMS
from splatgen.runs import atomic
from splatgen.scene.cameras import turntable
from splatgen.scene.splats import Splats, random_ball

VIEWS, ROUNDS = 4, 20
COUNTS, SIDES, TINY = (5_000, 50_000), (128, 256, 512), ((30, 16),)
RATIO = 2.0  # aim: Triton over gsplat
Row = dict[str, Any]


def scene(count: int, device: str) -> Splats:
    """A ball of splats, most of which one sees through."""
    generator = torch.Generator().manual_seed(0)
    ball = random_ball(generator, count=count, radius=0.6, scale=0.02, opacity=0.4)
    return Splats(**{name: z.to(device).requires_grad_() for name, z in ball.tensors().items()})


def both_ways(splats: Splats, side: int, pull: torch.Tensor, backend: str) -> None:
    """A picture of each view and the gradients of all that it depends on."""
    rgb = render(splats, turntable(VIEWS, size=side), torch.zeros(3), backend=backend).rgb
    torch.autograd.grad((rgb * pull).sum(), [*splats.tensors().values()], allow_unused=True)


def measure(device: Device, count: int, side: int) -> Row:
    """Milliseconds by rasterizer; why one is not there stands in its place."""
    problems = {name: PROBLEMS[name]() for name in BACKENDS} if device.name == "cuda" else {"auto": None}
    names = [name for name, problem in problems.items() if problem is None]
    splats, pull = scene(count, device.name), torch.rand(VIEWS, 3, side, side, device=device.name)
    works = {name: functools.partial(both_ways, splats, side, pull, name) for name in names}
    for work in works.values():
        work()  # kernels are compiled
    found: Row = {
        name: float(f"{1e3 * seconds:.4g}")
        for name, seconds in medians(device, works, rounds=ROUNDS, seconds=2.0).items()
    }
    found |= {name: f"not measured: {problem}" for name, problem in problems.items() if problem is not None}
    if set(names) == set(BACKENDS):
        found["ratio"] = float(f"{found['triton'] / found['gsplat']:.3g}")
        found["met"] = found["ratio"] <= RATIO
    return found


def rows(device: Device, sizes: Sequence[tuple[int, int]], until: float) -> Iterator[Row]:
    """All rows, one after the other."""
    for count, side in sizes:
        named: Row = {"splats": count, "side": side, "views": VIEWS}
        if time.monotonic() > until:
            yield named | {"not measured": "the time was up"}
            continue
        try:
            yield named | measure(device, count, side)
        except RuntimeError as error:
            yield named | {"failed": f"{type(error).__name__}: {error}"[:1000]}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="result JSON")
    parser.add_argument("--tiny", action="store_true", help="few splats, on the CPU where there is no CUDA")
    parser.add_argument("--seconds", type=float, default=30.0, help="after which no row is begun")
    args = parser.parse_args(argv)
    device: Device = Card() if torch.cuda.is_available() else Processor()
    sizes = TINY if args.tiny else tuple(itertools.product(COUNTS, SIDES))
    here = device.name == "cuda" or args.tiny
    until = time.monotonic() + (args.seconds if here else -1.0)
    about = {"date": datetime.now(UTC).strftime("%Y%m%d"), **environment(device), "tiny": args.tiny}
    found: list[Row] = []
    for row in rows(device, sizes, until):
        if not here:
            row["not measured"] = "no CUDA device is usable here"
        found.append(row)
        print(row, flush=True)
        if args.out is not None:
            atomic.write_json(args.out, {**about, "unit": "ms", "rows": found})
    return 1 if any("failed" in row for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
