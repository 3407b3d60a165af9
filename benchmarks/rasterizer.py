"""Speed of the CPU rasterizer: forward and backward, projection included.

    python benchmarks/rasterizer.py [--quick] [--threads N] [--repeats N] [--no-compile]

Compared in the same run, taking turns: the numba kernels, the tile-batched torch version, and that
version with its blending under torch.compile. Next to them stands the counted floor: pairs of
(pixel, splat) that are really blended, times 128 floating-point operations (44 forward, 84
backward, the exponential's polynomial included), at the rate of this machine's matrix product.

CPU time is the number to trust on a shared machine; wall time shows what threads bring. Results go
to benchmarks/results/ as JSON.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning OpenMP threads would be timed as work

import numba
import numpy as np
import torch
from torch import Tensor

import splatgen
from splatgen.rasterizer import _composite, _functions, _torch, cpu
from splatgen.rasterizer._jit import TILE
from splatgen.runs.machine import machine_name
from splatgen.scene import cameras as cams

FLOP_PER_PAIR = 128
SCENES = ((10_000, 128, 1), (10_000, 128, 4), (10_000, 256, 1), (50_000, 256, 1), (50_000, 256, 4))
QUICK = ((10_000, 128, 1),)
TINY = ((200, 32, 1),)


@dataclass
class Scene:
    leaves: list[Tensor]  # means, quats, scales, opacities, colours
    viewmats: Tensor  # [C, 4, 4]
    Ks: Tensor  # [C, 3, 3]
    size: int
    backgrounds: Tensor  # [C, 3]
    cotangents: list[Tensor]  # image, alpha


def make_scene(count: int, size: int, views: int) -> Scene:
    """A ball of radius 0.5 seen from 2.5: scales 0.01 to 0.05, log-uniform; opacities 0.1 to 0.9."""
    g = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1)
    leaves = [
        direction * 0.5 * torch.rand(count, 1, generator=g) ** (1 / 3),
        torch.randn(count, 4, generator=g),
        torch.exp(math.log(0.01) + math.log(5) * torch.rand(count, 3, generator=g)),
        0.1 + 0.8 * torch.rand(count, generator=g),
        torch.rand(count, 3, generator=g),
    ]
    camera = cams.orbit(torch.arange(views) * 360.0 / views, torch.full((views,), 15.0), size=size)
    return Scene(
        leaves=[tensor.requires_grad_() for tensor in leaves],
        viewmats=cams.viewmats(camera),
        Ks=camera.K,
        size=size,
        backgrounds=torch.rand(views, 3, generator=g),
        cotangents=[torch.rand(views, size, size, d, generator=g) for d in (3, 1)],
    )


def rasterize(scene: Scene, backend: cpu.Backend) -> tuple[Tensor, Tensor, dict[str, Any]]:
    means, quats, scales, opacities, colors = scene.leaves
    return cpu.rasterization(
        *(means, quats, scales, opacities, colors),
        scene.viewmats,
        scene.Ks,
        scene.size,
        scene.size,
        backgrounds=scene.backgrounds,
        packed=False,
        backend=backend,
    )


@dataclass(frozen=True)
class Times:
    """Milliseconds of one pass."""

    forward: float
    backward: float
    wall: float


def measure(scene: Scene, backend: cpu.Backend) -> Times:
    for leaf in scene.leaves:
        leaf.grad = None
    wall, start = time.perf_counter(), time.process_time()
    image, alpha, _ = rasterize(scene, backend)
    middle = time.process_time()
    torch.autograd.backward([image, alpha], scene.cotangents)
    end = time.process_time()
    return Times(1e3 * (middle - start), 1e3 * (end - middle), 1e3 * (time.perf_counter() - wall))


@numba.njit  # type: ignore[untyped-decorator]
def count_pairs(rec: Any, ext: Any, toff: Any, entries: Any, tiles: Any) -> Any:
    """Blended (pixel, splat) pairs: lanes whose `last` became this splat's index; and lanes visited."""
    tiles_x, size = tiles
    S, col = np.empty(_composite.S_SIZE, np.float32), np.zeros((len(rec), 4), np.float32)
    lanes, side = _composite.LANES, TILE
    blended, visited = 0, 0
    for c in range(toff.shape[0]):
        for t in range(toff.shape[1] - 1):
            top = t // tiles_x * side
            _composite.clear(S, t % tiles_x * side, top, size, size)
            for k in range(toff[c, t], toff[c, t + 1]):
                index = k - toff[c, t]
                p0, p1 = _composite.lanes(ext, entries[k], top)
                _composite.splat_forward(S, p0, p1, rec, col, entries[k], index)
                visited += p1 - p0
                for p in range(p0, p1):
                    blended += S[p + 3 * lanes] == index
                if index % side == side - 1 and _composite.alive(S) == 0:
                    break
    return blended, visited


def counted(scene: Scene) -> tuple[int, int]:
    _, _, meta = rasterize(scene, "numba")
    flat = {name: meta[name].detach().flatten(0, 1) for name in ("means2d", "conics", "depths", "radii")}
    rows = np.arange(len(scene.viewmats) + 1) * len(scene.leaves[0])
    bins = _functions._bins(
        flat["means2d"],
        flat["conics"],
        meta["opacities"].detach().reshape(-1),
        flat["depths"],
        flat["radii"],
        rows,
        (scene.size, scene.size),
    )
    blended, visited = count_pairs(bins.rec, bins.ext, bins.toff, bins.entries, (bins.tiles_x, scene.size))
    return int(blended), int(visited)


def matmul_rate() -> float:
    """Flop per second of one core, from the best of a few float32 matrix products."""
    threads, n = torch.get_num_threads(), 768
    torch.set_num_threads(1)
    a, best = torch.rand(n, n), math.inf
    for _ in range(12):
        start = time.process_time()
        a @ a
        best = min(best, time.process_time() - start)
    torch.set_num_threads(threads)
    return 2 * n**3 / best


def candidates(compile_too: bool) -> dict[str, Callable[[Scene], Times]]:
    chosen: dict[str, Callable[[Scene], Times]] = {
        "numba": lambda scene: measure(scene, "numba"),
        "torch": lambda scene: measure(scene, "torch"),
    }
    if not compile_too:
        return chosen
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")):
        print("torch.compile skipped: no C++ compiler found", file=sys.stderr)
        return chosen
    plain, compiled = _torch.blend, torch.compile(_torch.blend, dynamic=True)

    def measure_compiled(scene: Scene) -> Times:
        _torch.blend = compiled
        try:
            return measure(scene, "torch")
        finally:
            _torch.blend = plain

    return chosen | {"torch.compile": measure_compiled}


def summary(times: list[Times]) -> dict[str, float]:
    cpu_ms = [t.forward + t.backward for t in times]
    return {
        "forward_cpu_ms": round(statistics.median(t.forward for t in times), 2),
        "backward_cpu_ms": round(statistics.median(t.backward for t in times), 2),
        "cpu_ms": round(statistics.median(cpu_ms), 2),
        "best_cpu_ms": round(min(cpu_ms), 2),
        "wall_ms": round(statistics.median(t.wall for t in times), 2),
        "best_wall_ms": round(min(t.wall for t in times), 2),
    }


def run_scene(
    shape: tuple[int, int, int], methods: dict[str, Any], repeats: int, rate: float
) -> dict[str, Any]:
    count, size, views = shape
    scene = make_scene(count, size, views)
    first = {}
    for name, method in methods.items():  # compile
        start = time.perf_counter()
        method(scene)
        first[name] = round(time.perf_counter() - start, 2)
        method(scene)
    times: dict[str, list[Times]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, method in methods.items():
            times[name].append(method(scene))
    blended, visited = counted(scene)
    floor = 1e3 * blended * FLOP_PER_PAIR / rate
    results: dict[str, Any] = {name: summary(values) for name, values in times.items()}
    for name, result in results.items():
        result["first_call_s"] = first[name]
        result["times_numba"] = round(result["cpu_ms"] / results["numba"]["cpu_ms"], 2)
        result["times_floor"] = round(result["cpu_ms"] / floor, 1)
    row = {
        "splats": count,
        "pixels": size,
        "cameras": views,
        "blended_pairs": blended,
        "visited_lanes": visited,
    }
    return row | {"floor_ms": round(floor, 3), "methods": results}


def show(row: dict[str, Any]) -> None:
    title = f"{row['splats']} splats, {row['pixels']} px, {row['cameras']} cameras"
    print(f"{title}: {row['blended_pairs']} blended pairs, floor {row['floor_ms']} ms")
    for name, r in row["methods"].items():
        print(
            f"  {name:14} {r['forward_cpu_ms']:8.1f} + {r['backward_cpu_ms']:8.1f} ms CPU, "
            f"{r['wall_ms']:8.1f} ms wall, {r['times_numba']:6.1f} x numba, {r['times_floor']:7.1f} x floor"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one scene, three repeats, no torch.compile")
    parser.add_argument("--tiny", action="store_true", help="a scene of nothing, once: only to see it run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rate = matmul_rate()
    methods = candidates(compile_too=not (args.quick or args.tiny or args.no_compile))
    scenes = TINY if args.tiny else QUICK if args.quick else SCENES
    repeats = 1 if args.tiny else 3 if args.quick else args.repeats
    rows = []
    for shape in scenes:
        rows.append(run_scene(shape, methods, repeats, rate))
        show(rows[-1])
    now = datetime.datetime.now(datetime.UTC)
    versions = {"splatgen": splatgen.__version__, "torch": torch.__version__, "numba": numba.__version__}
    result = {
        "benchmark": "rasterizer",
        "date": now.isoformat(timespec="seconds"),
        "machine": machine_name(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "matmul_gflops": round(rate / 1e9, 1),
        "versions": versions | {"numpy": np.__version__, "python": platform.python_version()},
        "scenes": rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"rasterizer-{now:%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
