"""Whether a GPU computes what the CPU does: `python benchmarks/gpu_truth.py --out FILE`, on a CUDA device.

    rasterizer  a random scene by each rasterizer of the GPU against the CPU's: picture and gradients
    step        every score with every preference, 20 steps of the toybox; G of the first, in full float32,
                against the CPU's
    densify     splats that grow and are pruned
    resume      a run that stopped and went on against one that did not
    stages      a run of two, the second of which refines
    tests       the tests of the GPU path and of the rasterizers

The report is written anew after each row; what fails is in it whole. --tiny takes the miniature models and a
few rows, on the CPU where there is no CUDA: that tries this file. Exits with 1 where a row failed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from measuring import ROOT, Card, Device, NotMeasured, Processor, environment
from torch import Tensor

from splatgen.config import Config, from_dict
from splatgen.loop import object_run
from splatgen.loop.initial_splats import starting_splats
from splatgen.loop.loop import Progress
from splatgen.loop.step import advance, load_models
from splatgen.rasterizer import render
from splatgen.rasterizer.backends import BACKENDS, PROBLEMS
from splatgen.runs import atomic, checkpoint
from splatgen.scene.cameras import turntable
from splatgen.scene.parameters import new_scene
from splatgen.scene.splats import Splats, random_ball

SCORES = ("sds", "csd", "sdi", "ism", "vsd", "nfsd", "bridge")
PREFERENCES: dict[str, dict[str, Any]] = {
    "none": {},
    "weighted": {"weighted": {"candidates": 4, "lookahead": 2, "stop": 1.0}},
    "dpo": {},
    "psd": {"psd": {"interval": 5, "t_limit": 1.0}},
    "ascent": {"ascent": {"start": 0.0}},
}
PICTURE, GRADIENT, STEP, RESUMED = 1e-3, 1e-2, 1e-2, 5e-2  # relative differences in the L2 norm
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
    """Where things are computed, and how large."""

    device: str
    tiny: bool

    def config(self, score: str = "sds", preference: str = "none", **more: Any) -> Config:
        name = "toybox-mini" if self.tiny else "toybox"
        options = PREFERENCES[preference]
        return from_dict(
            {
                "prompt": "a red cube on top of a blue sphere",
                "prior": name,
                "reward": [name],
                "score": score,
                "preference": preference,
                "steps": 1 if self.tiny else 20,
                "device": self.device,
                "guidance": {"scale": 3.0},
                "views": {"count": 2 if self.tiny else 4, "size": [16 if self.tiny else 64]},
                "splats": {"count": 40 if self.tiny else 2000},
                "densify": {"rounds": 0},
                "output": {"frames": 0, "size": 16, "checkpoint_seconds": 0},
                **options,
                **more,
            }
        )

    def cells(self) -> Iterator[tuple[str, str]]:
        if self.tiny:
            yield "vsd", "psd"
            return
        for score in SCORES:
            for preference in PREFERENCES:
                yield score, preference


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Float32 without TF32, which cuDNN's convolutions take unless told otherwise.

    Ten bits are enough for two candidates whose rewards lie 3e-5 apart to change places (ism weighted), and
    where PSD scales the difference of two nearly equal residuals, it scales their rounding, too (ism psd).
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def apart(a: Tensor, b: Tensor) -> float:
    """The length of the difference in that of b."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def near(found: dict[str, float], most: float) -> Row:
    """A row of differences; RuntimeError where one is too large."""
    bad = {name: value for name, value in found.items() if not value <= most}
    if bad:
        raise RuntimeError(f"further apart than {most}: {bad}")
    return {name: float(f"{value:.2g}") for name, value in found.items()}


def rasterizer(truth: Truth, backend: str) -> Row:
    """Picture and gradients of every parameter; on the CPU, the CPU's against itself."""
    if truth.device == "cuda" and (problem := PROBLEMS[backend]()) is not None:
        raise NotMeasured(str(problem))
    size, count = (16, 30) if truth.tiny else (128, 3000)
    generator = torch.Generator().manual_seed(0)
    ball = random_ball(generator, count=count, radius=0.6, scale=0.05, opacity=0.4)
    splats = dataclasses.replace(
        ball,
        quats=torch.randn(count, 4, generator=generator),
        scales=ball.scales + 0.5 * torch.randn(count, 3, generator=generator),
    )
    pull = torch.rand(2, 3, size, size, generator=generator)
    found = [rendered(splats, pull, size, *z) for z in (("cpu", "auto"), (truth.device, backend))]
    names = ("picture", *splats.tensors())
    rows = {name: apart(b, a) for name, a, b in zip(names, *found, strict=True)}
    return near({"picture": rows.pop("picture")}, PICTURE) | near(rows, GRADIENT)


def rendered(splats: Splats, pull: Tensor, size: int, device: str, backend: str) -> list[Tensor]:
    """The picture of two views, and gradients that pull at it."""
    leaves = {name: z.to(device).requires_grad_() for name, z in splats.tensors().items()}
    chosen = "auto" if device == "cpu" else backend
    rgb = render(Splats(**leaves), turntable(2, size=size), torch.full((3,), 0.5), backend=chosen).rgb
    found = torch.autograd.grad((rgb * pull.to(device)).sum(), [*leaves.values()], allow_unused=True)
    zeros = [torch.zeros_like(z) for z in leaves.values()]
    return [rgb, *(zero if g is None else g for g, zero in zip(found, zeros, strict=True))]


def steps(truth: Truth, score: str, preference: str) -> Row:
    """G of the first step against the CPU's, and as many steps as there are without one that was skipped."""
    config = truth.config(score, preference)
    firsts = []
    for device in ("cpu", truth.device):
        models = load_models(config, device)
        scene = new_scene(config, starting_splats(config), device)
        with exact():
            firsts.append(advance(config, models, scene))
        scene.step += 1
    there, here = (first.found for first in reversed(firsts))
    assert there is not None  # no step of it fits pictures
    assert here is not None
    row = near({"G": apart(there.value, here.value)}, STEP)
    losses = [firsts[1].loss]
    for _ in range(config.steps - 1):
        seen = advance(config, models, scene)
        if float(seen.failed):
            raise RuntimeError(f"step {scene.step} was skipped: {seen.values()}")
        losses.append(seen.loss)
        scene.step += 1
    return row | {"steps": config.steps, "first_loss": float(losses[0]), "last_loss": float(losses[-1])}


def densify(truth: Truth) -> Row:
    """Two rounds."""
    config = truth.config(steps=4, densify={"rounds": 2, "start": 0.0, "stop": 0.8, "grow": 0.3})
    scene = new_scene(config, starting_splats(config), truth.device)
    models, before = load_models(config, truth.device), len(scene.params["means"])
    for _ in range(config.steps):
        failed = advance(config, models, scene).failed
        scene.step += 1
    after = len(scene.params["means"])
    if float(failed) or after == before:
        raise RuntimeError(f"{before} splats became {after}; the last step failed: {float(failed)}")
    return {"before": before, "after": after}


def resume(truth: Truth) -> Row:
    """Means of the splats; a GPU adds in any order, so they are not equal to the bit."""
    length, ends, reached = 2 if truth.tiny else 4, [], [0]
    config = truth.config(preference="psd", steps=length)

    def report(progress: Progress) -> None:
        reached[0] = progress.step

    with tempfile.TemporaryDirectory() as folder:
        for stop_at in (length, length // 2):
            done = object_run.generate(
                config,
                out=Path(folder) / str(stop_at),
                command=["truth"],
                report=report,
                should_stop=functools.partial(lambda at: reached[0] == at, stop_at),
            )
            if done.status == "stopped":
                done = object_run.resume(done.run.folder, command=["truth"])
            ends.append(checkpoint.load_latest(done.run.checkpoints).parts["splats"]["means"])
            reached[0] = 0
    return near({"means": apart(ends[1], ends[0])}, RESUMED)


def stages(truth: Truth) -> Row:
    """A run whose second half fits its splats to pictures that the prior made of the first half's."""
    later = {"share": 0.5, "score": "refine", "refine": {"views": 2, "steps": 2, "rounds": 1}}
    config = truth.config(steps=2 if truth.tiny else 20, stages=[{"share": 0.5}, later])
    with tempfile.TemporaryDirectory() as folder:
        done = object_run.generate(config, out=Path(folder), command=["truth"])
    if done.status != "done":
        raise RuntimeError(f"the run ended as {done.status}")
    return {"steps": config.steps}


def tests(seconds: float) -> Row:
    """pytest on what is about the GPU."""
    places = [str(ROOT / "tests" / name) for name in ("gpu", "rasterizer")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *places]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=seconds, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout[-20_000:])
    return {"passed": done.stdout.strip().splitlines()[-1]}


def plan(truth: Truth, until: float) -> Iterator[tuple[str, Callable[[], Row]]]:
    """What to look at, the most wanted first."""
    for backend in BACKENDS:
        yield f"rasterizer {backend}", functools.partial(rasterizer, truth, backend)
    for score, preference in truth.cells():
        yield f"step {score} {preference}", functools.partial(steps, truth, score, preference)
    yield "densify", functools.partial(densify, truth)
    yield "resume", functools.partial(resume, truth)
    yield "stages", functools.partial(stages, truth)
    if not truth.tiny:
        yield "tests", lambda: tests(until - time.monotonic())


def look(work: Callable[[], Row]) -> Row:
    """A row, whatever happens to it."""
    begin = time.monotonic()
    try:
        found = {"ok": True, **work()}
    except NotMeasured as reason:
        found = {"not measured": str(reason)}
    except subprocess.TimeoutExpired:
        found = {"not measured": "the time was up"}
    except Exception as error:  # noqa: BLE001 - it is what this file is for
        found = {"failed": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()[-20_000:]}
    return found | {"seconds": round(time.monotonic() - begin, 2)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="result JSON")
    parser.add_argument("--tiny", action="store_true", help="small models, on the CPU where there is no CUDA")
    parser.add_argument("--seconds", type=float, default=135.0, help="after which no row is begun")
    args = parser.parse_args(argv)
    until = time.monotonic() + args.seconds
    device: Device = Card() if torch.cuda.is_available() else Processor()
    truth = Truth(device=device.name, tiny=args.tiny)
    here = torch.cuda.is_available() or args.tiny
    jobs = list(plan(truth, until))
    rows: dict[str, Row] = {
        name: {"not measured": "the time was up" if here else "no CUDA device is usable here"}
        for name, _ in jobs
    }

    def write() -> None:
        if args.out is not None:
            date = datetime.now(UTC).strftime("%Y%m%d")
            atomic.write_json(
                args.out, {"date": date, **environment(device), "tiny": args.tiny, "rows": rows}
            )

    write()
    for name, work in jobs:
        if here and time.monotonic() < until:
            rows[name] = look(work)
            print(name, rows[name], flush=True)
            write()
    return 1 if any("failed" in row for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
