"""What a step costs beyond its model calls and its render: `python benchmarks/overhead.py`.

Steps of a real run alternate with the bare work they contain, on the same splats and cameras: one render
with its backward pass, and one batched denoiser call. CPU seconds, because a shared machine's wall clock
says little; the ratio of the medians is the figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from splatgen.config import Config, from_dict
from splatgen.guidance.conditioning import conditions
from splatgen.guidance.distillation import inject
from splatgen.loop.initial_splats import starting_splats
from splatgen.loop.step import Models, advance, load_models, render_views
from splatgen.runs.machine import machine_name
from splatgen.scene.parameters import Scene, new_scene


def bare(config: Config, models: Models, scene: Scene) -> None:
    """The same render, backward pass and denoiser call, and nothing else."""
    out, cameras = render_views(config, scene, scene.step / config.steps)
    x = models.prior.encode(out.rgb)
    t = torch.full((len(x),), 0.5)
    told = conditions(models.target, models.negative, cameras, config.guidance)
    both = {name: torch.cat([told.positive[name], told.negative[name]]) for name in told.positive}
    cams = cameras[torch.arange(len(x)).repeat(2)]
    with torch.no_grad():
        models.prior.predict(torch.cat([x, x]).detach(), torch.cat([t, t]), both, cams)
    inject(x, torch.ones_like(x))
    for p in scene.params.values():
        p.grad = None


def measure(config: Config, steps: int) -> dict[str, float]:
    models = load_models(config, "cpu")
    scene = new_scene(config, starting_splats(config), "cpu")
    times: dict[str, list[float]] = {"step": [], "bare": []}
    for n in range(steps):
        for name, work in (("bare", bare), ("step", advance)):
            begin = time.process_time()
            work(config, models, scene)
            if n >= 5:  # the first ones compile and warm caches
                times[name].append(time.process_time() - begin)
        scene.step += 1
    step, inside = statistics.median(times["step"]), statistics.median(times["bare"])
    return {
        "step_ms": round(1e3 * step, 2),
        "bare_ms": round(1e3 * inside, 2),
        "ratio": round(step / inside, 3),
        "splats": len(scene.params["means"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--out", type=Path, help="result JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = from_dict({"prompt": "a blue sphere on top of a green cylinder"})
    found = measure(config, args.steps)
    print(f"step {found['step_ms']} ms, bare {found['bare_ms']} ms, ratio {found['ratio']}")
    if args.out:
        machine = {"machine": machine_name(), "threads": 1}
        report = {"date": datetime.now(UTC).strftime("%Y%m%d"), **machine, "steps": args.steps, **found}
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
