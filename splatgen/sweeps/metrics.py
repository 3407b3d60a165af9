"""What `splatgen eval` can measure of a finished run, by name.

Shapes: V views, S image side.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from splatgen.config import Config
from splatgen.loop.step import reward_prompts
from splatgen.models.budget import LoadOptions
from splatgen.rewards import JUDGES, Reward, load_reward
from splatgen.runs import run_folder
from splatgen.runs.metrics import read_metrics
from splatgen.runs.run_folder import Run
from splatgen.scene.cameras import Cameras, orbit, turntable
from splatgen.scene.splats import Splats
from splatgen.sweeps import splat_statistics
from splatgen.sweeps.views import pictures, ssim
from splatgen.worlds.shelf import evaluation as shelf
from splatgen.worlds.shelf import grammar as shelf_grammar
from splatgen.worlds.shelf import scenes, shelf_folder
from splatgen.worlds.toybox import evaluation as toybox
from splatgen.worlds.toybox import grammar as toybox_grammar
from splatgen.worlds.toybox import world as toybox_world

FRAMES = 120  # of the turn that tells how evenly a picture changes
AZIMUTHS, FACE_SIZE = 24, 64  # of the views in which the front is looked for, and their side
APART = 4e-3  # mean squared difference of pictures that differ by more than the light, which is the world's


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A finished run before the eye of the metrics."""

    run: Run
    config: Config
    splats: Splats
    cameras: Cameras  # of the set of views
    images: Tensor  # [V, 3, S, S] on white


@dataclass
class Metrics:
    """What measures runs; networks stay loaded between them."""

    options: LoadOptions
    _rewards: dict[str, Reward] = field(default_factory=dict)

    def measure(self, name: str, subject: Subject) -> dict[str, float]:
        """The numbers of a metric by name; none where it has nothing to say of such a run."""
        if name in PLAIN:
            return PLAIN[name](subject)
        if name == "truth":
            return self._truth(subject)
        images, cameras, together = subject.images, subject.cameras, JUDGES[name].views
        if together > 1:  # views all around, as it is used to
            cameras = turntable(together, size=cameras.width)
            images = pictures(subject.splats, cameras)
        prompts = (subject.config.prompt,) * len(images)
        if JUDGES[name].embedded:  # as the run itself scores it
            prompts = reward_prompts(subject.config, cameras)
        with torch.no_grad():
            return {name: float(self._reward(name)(images, prompts).mean())}

    def _reward(self, name: str) -> Reward:
        if name not in self._rewards:
            embedded = JUDGES[name].embedded
            self._rewards[name] = load_reward(name, LoadOptions() if embedded else self.options)
        return self._rewards[name]

    def _truth(self, subject: Subject) -> dict[str, float]:
        """Against the exact pictures of an embedded world, from views that guided nothing."""
        if not has_truth(subject.config):
            return {}
        config, splats = subject.config, subject.splats
        if config.prior == "shelf":
            judge = cast("shelf.Judge", self._reward("shelf-judge"))
            caption = shelf_grammar.parse(config.prompt)
            row = shelf.evaluate(splats, caption, judge).row()
            exact: Any = shelf.examination(caption, shelf.SIZES[0])
        else:
            plain = toybox_grammar.parse(config.prompt)
            row = toybox.evaluate(splats, plain, self._reward("toybox-judge")).row()
            exact = toybox.examination(plain, 64)
        seen, _ = shelf.seen(splats, exact.cameras)
        row["ssim"] = float(ssim(seen, exact.rgb).mean())
        return {f"truth/{key}": value for key, value in row.items()}


def has_truth(config: Config) -> bool:
    """Whether a run's prompt has exact pictures on this machine."""
    if config.prior == "shelf":
        return shelf_folder() is not None
    return config.prior in ("toybox", "toybox-mini")


def faces(subject: Subject) -> dict[str, float]:
    """Share of the azimuths behind and beside the object from which its front is seen again.

    Of those whose exact picture can be told from that of the front: where the object looks more like its
    exact front than like what should be seen from there. 0 for a true object, 1 for one with a face
    everywhere (Janus).
    """
    if not has_truth(subject.config):
        return {}
    exact = _around(subject.config.prior == "shelf", subject.config.prompt)
    seen, _ = shelf.seen(subject.splats, exact.cameras)
    front = exact.rgb[:1]
    other = ((exact.rgb - front).square().mean((1, 2, 3)) > APART).nonzero()[:, 0]
    if not len(other):
        return {}  # the same from all sides
    to_front = (seen - front).square().mean((1, 2, 3))
    to_own = (seen - exact.rgb).square().mean((1, 2, 3))
    return {"faces/front_again": float((to_front < to_own)[other].float().mean())}


@functools.lru_cache(maxsize=16)
def _around(of_shelf: bool, prompt: str) -> shelf.Examination:
    """Exact pictures of a prompt all around, on grey, the front first."""
    azimuth = torch.arange(AZIMUTHS) * (360.0 / AZIMUTHS)
    cameras = orbit(azimuth, torch.full_like(azimuth, 15.0), size=FACE_SIZE)
    grey = torch.full((3,), toybox.BACKGROUND)
    if of_shelf:
        found: Any = scenes.ground_truth(shelf_grammar.parse(prompt), cameras, grey)
    else:
        found = toybox_world.ground_truth(toybox_grammar.parse(prompt), cameras, grey)
    return shelf.Examination(cameras=cameras, rgb=found.rgb, alpha=found.alpha)


def consistency(subject: Subject) -> dict[str, float]:
    """How alike neighbouring frames of a full turn are: structural similarity, its mean and its least."""
    turn = pictures(subject.splats, turntable(FRAMES, size=subject.cameras.width))
    alike = ssim(turn, turn.roll(-1, 0))
    return {"consistency/mean": float(alike.mean()), "consistency/least": float(alike.min())}


def cloud(subject: Subject) -> dict[str, float]:
    return {f"splats/{name}": value for name, value in splat_statistics.statistics(subject.splats).items()}


def costs(subject: Subject) -> dict[str, float]:
    """Model calls, seconds and memory of the run, from its own files."""
    data, rows = run_folder.read(subject.run), read_metrics(subject.run.metrics)
    calls = [row["guidance/model_calls"] for row in rows if "guidance/model_calls" in row]
    found: dict[str, Any] = {
        "cost/calls": statistics.fmean(calls) * data["steps"] if calls else None,
        "cost/seconds": data.get("wall_time_s"),
        "cost/memory_mb": data.get("peak_memory_mb"),
        "cost/gpu_memory_mb": data.get("peak_gpu_memory_mb"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


PLAIN: Mapping[str, Callable[[Subject], dict[str, float]]] = {
    "faces": faces,
    "consistency": consistency,
    "splats": cloud,
    "cost": costs,
}
