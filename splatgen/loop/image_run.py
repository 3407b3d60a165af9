"""The 2D loop: the same guidance on one image, or several, instead of an object.

    x -> guidance -> inject -> AdamW -> record

Shapes: B images, C x h x w the prior's space, S its side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from splatgen.config import ConfigError, ImageConfig, merge, read_file
from splatgen.config.validation import validate_image
from splatgen.guidance.distillation import gradient
from splatgen.guidance.scores.base import Metrics
from splatgen.loop.encoding import encode, pull_back
from splatgen.loop.lifecycle import begins_again, carry_out, check_steps, create_run, pick_device, reopen
from splatgen.loop.loop import Progress, Result, StepRecord, Subject, ignore, loop_settings, never
from splatgen.loop.results import write_images
from splatgen.loop.snapshot import ViewRequest
from splatgen.loop.step import (
    Models,
    load_models,
    make_moment,
    read_together,
    reward_prompts,
    score_rewards,
)
from splatgen.priors import Prior
from splatgen.runs import checkpoint, lock, packing, run_folder
from splatgen.runs.rng import rng
from splatgen.runs.run_folder import Run
from splatgen.scene.cameras import Cameras, orbit

KIND = "image"  # what run.json calls a 2D run
ELEVATION = 15.0  # degrees of the camera that the prior is told; it looks at the front


@dataclass(kw_only=True)
class Canvas:
    """What changes from step to step."""

    values: torch.nn.Parameter  # [B, C, h, w] in the prior's space, or [B, 3, S, S] in 0..1
    optimizer: torch.optim.AdamW
    step: int
    source: Tensor | None  # [B, 3, S, S] the picture an edit started from, once for each image
    failures: Tensor | int = 0  # steps in a row without a finite gradient


@dataclass(frozen=True, kw_only=True)
class ImageStep:
    """What a step leaves for the metrics."""

    loss: Tensor  # [] mean square of G
    failed: bool  # the step was skipped
    t_max: float
    model_calls: int  # images through the denoiser
    metrics: Metrics  # of score and preference

    def values(self) -> dict[str, float]:
        """A row of metrics.jsonl."""
        metrics = read_together(self.metrics)
        return {"t_max": self.t_max, "guidance/model_calls": self.model_calls, **metrics}


def fit(picture: NDArray[np.uint8], side: int) -> Tensor:
    """The middle square of a picture [H, W, 3], side x side, as [1, 3, S, S] in 0..1.

    Pixels are averaged where it shrinks, as pixel priors average renders.
    """
    height, width = picture.shape[:2]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    box = (left, top, left + square, top + square)
    how = Image.Resampling.BOX if square >= side else Image.Resampling.BICUBIC
    small = np.asarray(Image.fromarray(picture).resize((side, side), how, box=box))
    return torch.tensor(small).permute(2, 0, 1)[None] / 255.0


def front(count: int, side: int) -> Cameras:
    """One camera in front, once for each image."""
    angles = torch.zeros(count)
    return orbit(angles, angles + ELEVATION, size=side)


def start_values(config: ImageConfig, prior: Prior, source: Tensor | None, device: str) -> Tensor:
    """The images of the first step, [B, C, h, w] or [B, 3, S, S]: the picture of an edit, noise or grey."""
    o, side = config.image, prior.resolution
    picture = torch.full((o.count, 3, side, side), 0.5, device=device) if source is None else source
    with torch.no_grad():
        values = picture if o.space == "pixels" else prior.encode(picture)
    if source is None and o.start == "noise":
        noise = torch.randn(values.shape, generator=rng(config.seed, 0, "canvas")).to(values)
        return (0.5 + 0.5 * noise).clamp(0.0, 1.0) if o.space == "pixels" else noise
    return values


def new_canvas(config: ImageConfig, values: Tensor, source: Tensor | None) -> Canvas:
    """Images and their optimiser. No weight decay: it would pull an edit's untouched parts to grey."""
    p = torch.nn.Parameter(values.detach().clone().contiguous())
    optimizer = torch.optim.AdamW([p], lr=config.image.lr, betas=(0.9, 0.99), eps=1e-15, weight_decay=0.0)
    return Canvas(values=p, optimizer=optimizer, step=0, source=source)


def pictures(config: ImageConfig, prior: Prior, values: Tensor) -> Tensor:
    """The images as one sees them, [B, 3, S, S] in 0..1."""
    return values if config.image.space == "pixels" else prior.decode(values)


def advance(config: ImageConfig, models: Models, canvas: Canvas) -> ImageStep:
    """One step of the optimisation."""
    prior, values = models.prior, canvas.values
    x = encode(prior, (values,), models.encode) if config.image.space == "pixels" else values
    if config.image.space == "pixels" or config.preference == "ascent":
        images = pictures(config, prior, values)
    else:  # nobody looks at them, and a decoder can cost as much as a step
        images = values.new_empty(len(values), 3, 0, 0)
    with torch.no_grad():
        before = None if canvas.source is None else encode(prior, (canvas.source,), models.encode)
    moment = make_moment(
        config,
        models,
        step=canvas.step,
        x=x,
        images=images,
        cameras=front(len(x), prior.resolution),
        before=before,
    )
    found = gradient(moment, models.score, models.preference, models.ensemble)
    pull_back(prior, models.encode, x, found.value, (images,), images, found.on_render)
    return ImageStep(
        loss=found.value.square().mean(),
        failed=not update(config, canvas),
        t_max=float(moment.times.max()),
        model_calls=found.model_calls,
        metrics=found.metrics,
    )


def update(config: ImageConfig, canvas: Canvas) -> bool:
    """One AdamW step, unless the gradient is not finite: then nothing moves, and it returns False.

    Pixels are kept in 0..1 by clamping them after the step (projected descent). A sigmoid would hold them
    there too, but it has no gradient left at black and white, and a picture that has both has no start.
    """
    values = canvas.values
    if values.grad is None:
        raise RuntimeError("the images have no gradient: back-propagate before the update")
    finite = bool(torch.isfinite(values.grad).all())
    if finite:
        canvas.optimizer.step()
        if config.image.space == "pixels":
            values.data.clamp_(0.0, 1.0)
    canvas.optimizer.zero_grad(set_to_none=True)
    return finite


def score_images(config: ImageConfig, models: Models, canvas: Canvas) -> dict[str, float]:
    """Every reward of the images, averaged."""
    with torch.no_grad():
        seen = pictures(config, models.prior, canvas.values)
    cameras = front(len(seen), models.prior.resolution)
    return score_rewards(models, seen, reward_prompts(config, cameras))


def save_canvas(folder: Path, canvas: Canvas, learned: dict[str, Any]) -> None:
    """Everything the next step depends on; learned is what score and preference hold, by name."""
    moments, rest = packing.pack(canvas.optimizer.state_dict())
    parts: dict[str, dict[str, Tensor]] = {
        "image": {"values": canvas.values.detach()},
        "optimizer": moments,
        "source": {} if canvas.source is None else {"picture": canvas.source},
    }
    more, methods = packing.pack_each(learned)
    parts |= more
    state = {"optimizer": rest, "failures": int(canvas.failures), "methods": methods}
    checkpoint.save(folder, canvas.step, parts, state)


def load_canvas(config: ImageConfig, folder: Path, device: str) -> tuple[Canvas, dict[str, Any]]:
    """The canvas of the latest whole checkpoint in a folder, and what `save_canvas` got as learned."""
    found = checkpoint.load_latest(folder)
    checkpoint.expect(found, folder, ("image", "optimizer", "source"))
    with checkpoint.explained(folder):
        return _unpacked(config, found, device)


def _unpacked(
    config: ImageConfig, found: checkpoint.Checkpoint, device: str
) -> tuple[Canvas, dict[str, Any]]:
    source = found.parts["source"].get("picture")
    values = found.parts["image"]["values"].to(device)
    canvas = new_canvas(config, values, None if source is None else source.to(device))
    canvas.step, canvas.failures = found.step, int(found.state["failures"])
    canvas.optimizer.load_state_dict(packing.unpack(found.parts["optimizer"], found.state["optimizer"]))
    methods = packing.unpack_each(found.parts, found.state["methods"])
    return canvas, methods


@dataclass(kw_only=True)
class ImageRun(Subject):
    """What a 2D run changes: a canvas, with the models that change it."""

    config: ImageConfig
    models: Models
    canvas: Canvas
    run: Run
    advice: str = "lower --image.lr or --guidance.scale"

    @property
    def state(self) -> Canvas:
        return self.canvas

    def advance(self, models: Models, *, scored: bool) -> StepRecord:
        rewards = score_images(self.config, models, self.canvas) if scored else None
        seen = advance(self.config, models, self.canvas)
        return StepRecord(
            failed=torch.tensor(float(seen.failed)),
            loss=seen.loss,
            splats=0,
            rewards=rewards,
            values=seen.values,
        )

    def steer(self, setting: str, value: float) -> None:
        raise ConfigError(f"{setting}: a 2D run has no settings that change while it goes on")

    def file(self) -> bytes:
        raise NotImplementedError("a 2D run has no splats to save")

    def snapshot(self, row: StepRecord | None, look: ViewRequest | None) -> dict[str, Any]:
        raise NotImplementedError("a 2D run has no splats to show")

    def clear(self) -> None:
        self.canvas.optimizer.zero_grad()

    def save(self) -> None:
        save_canvas(self.run.checkpoints, self.canvas, self.models.learned())

    def restore(self) -> None:
        device = str(self.canvas.values.device)
        canvas, learned = load_canvas(self.config, self.run.checkpoints, device)
        self.models.relearn(learned)
        self.canvas = canvas

    def keep(self) -> None:
        with torch.no_grad():
            images = pictures(self.config, self.models.prior, self.canvas.values)
        write_images(images, self.run.folder / "image.png")

    def write_results(self) -> dict[str, float]:
        self.keep()
        return score_images(self.config, self.models, self.canvas)

    def totals(self) -> dict[str, Any]:
        return {}


def generate(
    config: ImageConfig,
    *,
    out: Path,
    command: Sequence[str],
    picture: NDArray[np.uint8] | None = None,  # [H, W, 3]
    report: Callable[[Progress], None] = ignore,
    should_stop: Callable[[], bool] = never,
) -> Result:
    """Optimise images from noise, or change a picture by words, and write a run folder in `out`.

    An edit takes both the picture and config.source, what it shows. Raises ValueError for one without the
    other, and for a multi-view prior.
    """
    validate_image(config)
    if (picture is None) == bool(config.source):
        raise ValueError(
            "an edit takes a picture and a prompt of what it shows (source): give both or neither"
        )
    device = pick_device(config)
    models = _single_view(load_models(config, device))
    source = None
    if picture is not None:
        source = fit(picture, models.prior.resolution).to(device).repeat(config.image.count, 1, 1, 1)
    canvas = new_canvas(config, start_values(config, models.prior, source, device), source)

    def fill(run: Run) -> None:
        if source is not None:
            write_images(source[:1], run.folder / "source.png")

    run = create_run(config, models, out, command, device, kind=KIND, fill=fill)
    subject = ImageRun(config=config, models=models, canvas=canvas, run=run)
    with lock.held(run.folder):
        return carry_out(subject, loop_settings(config, config.image), run, report, should_stop)


def _single_view(models: Models) -> Models:
    if models.prior.views > 1:
        raise ValueError(
            f"the prior {models.prior.name!r} denoises {models.prior.views} views of an object together, and "
            "an image is one: use a single-view prior"
        )
    return models


def resume(
    folder: Path,
    *,
    steps: int | None = None,
    command: Sequence[str],
    report: Callable[[Progress], None] = ignore,
    should_stop: Callable[[], bool] = never,
) -> Result:
    """Continue a 2D run from its latest checkpoint; `steps` may raise its length (schedules stretch)."""
    run = run_folder.open_run(folder)
    saved = merge(ImageConfig(), read_file(run.config_json))
    config = validate_image(merge(saved, {"steps": saved.steps if steps is None else steps}))
    device = pick_device(config)
    with lock.held(run.folder):
        models = _single_view(load_models(config, device))
        canvas = _last_canvas(config, models, run, device)
        check_steps(config.steps, canvas.step)
        reopen(run, config, saved, canvas.step, command)
        subject = ImageRun(config=config, models=models, canvas=canvas, run=run)
        return carry_out(subject, loop_settings(config, config.image), run, report, should_stop)


def _last_canvas(config: ImageConfig, models: Models, run: Run, device: str) -> Canvas:
    """Where a run was, or its first step when it was killed before its first checkpoint; models learn along.

    Raises FileNotFoundError for an edit without a checkpoint, which holds its picture.
    """
    try:
        canvas, learned = load_canvas(config, run.checkpoints, device)
    except FileNotFoundError:
        if config.source:
            raise
        begins_again(run)
        return new_canvas(config, start_values(config, models.prior, None, device), None)
    models.relearn(learned)
    return canvas
