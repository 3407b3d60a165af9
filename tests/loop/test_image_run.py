"""The 2D loop: deterministic, resumable bit for bit, safe against broken gradients, and it edits.

Everything runs on the miniature models of 16 pixels, or on a prior whose answer is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analytic import GaussianPrior
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from splatgen.config import ConfigError, ImageConfig, ImageOptions, merge
from splatgen.config.validation import validate_image
from splatgen.loop import image_run, loop, results
from splatgen.loop.image_run import Canvas
from splatgen.loop.step import Models, assemble, load_models
from splatgen.priors.toybox import ToyboxPrior
from splatgen.rewards.ensemble import RewardEnsemble
from splatgen.runs import checkpoint, run_folder
from splatgen.runs.metrics import read_metrics
from splatgen.worlds.toybox.grammar import parse
from splatgen.worlds.toybox.world import ground_truth

STEPS = 6
SIDE = 16  # of the miniature prior
RED, BLUE = "a red cube", "a blue cube"
CASES: dict[str, dict[str, Any]] = {
    "latents": {},
    "pixels": {"image": {"space": "pixels", "count": 2}},
    "grey": {"image": {"start": "grey"}},
    "vsd": {"score": "vsd"},
    "psd": {"preference": "psd", "psd": {"interval": 2, "t_limit": 1.0}},
    "edit": {"source": RED, "prompt": BLUE, "preference": "weighted"},
    "edit of pixels": {"source": RED, "prompt": BLUE, "score": "sdi", "image": {"space": "pixels"}},
}


def config(**changes: Any) -> ImageConfig:
    base = ImageConfig(
        prompt=RED,
        prior="toybox-mini",
        reward=("toybox-mini",),
        holdout_reward=("toybox-judge",),
        steps=STEPS,
        device="cpu",
        image=ImageOptions(checkpoint_seconds=0, reward_every=2),
    )
    return merge(base, changes)  # type: ignore[no-any-return]


def exact(prompt: str) -> Tensor:
    """The exact picture of a prompt as the 2D loop sees it, on grey, [1, 3, S, S]."""
    cameras = image_run.front(1, SIDE)
    return ground_truth(parse(prompt), cameras, torch.full((3,), 0.5)).rgb


def as_bytes(images: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return (255.0 * images[0] + 0.5).byte().permute(1, 2, 0).numpy()


def start(folder: Path, given: ImageConfig, **options: Any) -> loop.Result:
    picture = as_bytes(exact(given.source)) if given.source else None
    return image_run.generate(given, out=folder, command=["test"], picture=picture, **options)


def stop_at(step: int) -> Callable[[], bool]:
    """A should_stop that lets `step` steps of this process pass."""
    calls = iter(range(10**6))
    return lambda: next(calls) >= step


def tensors(run: run_folder.Run) -> dict[str, Tensor]:
    found = checkpoint.load_latest(run.checkpoints)
    return {f"{part}/{name}": v for part, values in found.parts.items() for name, v in values.items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def fresh(given: ImageConfig) -> tuple[Models, Canvas]:
    """Models and a canvas for `advance`."""
    models = load_models(given, "cpu")
    return models, canvas_for(given, models)


def canvas_for(given: ImageConfig, models: Models) -> Canvas:
    source = image_run.fit(as_bytes(exact(given.source)), SIDE) if given.source else None
    return image_run.new_canvas(given, image_run.start_values(given, models.prior, source, "cpu"), source)


def run(given: ImageConfig, models: Models | None = None) -> Canvas:
    models = models or load_models(given, "cpu")
    canvas = canvas_for(given, models)
    while canvas.step < given.steps:
        image_run.advance(given, models, canvas)
        canvas.step += 1
    return canvas


def shown(given: ImageConfig, canvas: Canvas) -> Tensor:
    return canvas.values.detach() if given.image.space == "pixels" else 0.5 * (canvas.values.detach() + 1.0)


def decibels(a: Tensor, b: Tensor) -> float:
    return float(-10.0 * torch.log10((a - b).square().mean()))


# What a run leaves


def test_a_run_leaves_its_image_and_says_that_it_is_2d(tmp_path: Path) -> None:
    result = start(tmp_path, config(image={"count": 3}))
    data = run_folder.read(result.run)
    assert (result.status, result.step) == ("done", STEPS)
    assert (data["kind"], data["status"], data["steps"], data["splats"]) == ("image", "done", STEPS, None)
    assert all(math.isfinite(value) for value in data["rewards"].values())
    assert len(data["rewards"]) == 2  # the one that guides and the one that watches
    size = results.SHOWN // SIDE * SIDE
    assert Image.open(result.run.folder / "image.png").size == (3 * size, size)
    names = {path.name for path in result.run.folder.iterdir()}
    assert names == {"image.png", "config.json", "run.json", "metrics.jsonl", "checkpoints"}


def test_metrics_have_a_row_for_every_step(tmp_path: Path) -> None:
    result = start(tmp_path, config(preference="weighted"))
    rows = read_metrics(result.run.metrics)
    assert [row["step"] for row in rows] == list(range(STEPS))
    for row in rows:
        assert {"loss", "t_max", "time/step_ms"} <= row.keys()
        assert all(math.isfinite(value) for value in row.values())
        assert ("reward/toybox-mini" in row) == (row["step"] % 2 == 0 or row["step"] == STEPS - 1)
        assert ("holdout/toybox-judge" in row) == ("reward/toybox-mini" in row)
        early = row["step"] < STEPS // 2  # rewards weigh in the first half
        assert row["guidance/model_calls"] == (8 if early else 2)
        assert ("preference/reward_best" in row) == early


def test_rows_can_be_thinned(tmp_path: Path) -> None:
    result = start(tmp_path, config(image={"log_every": 3, "reward_every": 4}))
    assert [row["step"] for row in read_metrics(result.run.metrics)] == [0, 3, 4, 5]


def test_an_edit_leaves_what_it_started_from(tmp_path: Path) -> None:
    result = start(tmp_path, config(source=RED, prompt=BLUE))
    with Image.open(result.run.folder / "source.png") as picture:
        left = image_run.fit(np.asarray(picture), SIDE)
    assert torch.equal(left, image_run.fit(as_bytes(exact(RED)), SIDE))  # enlarged by whole pixels


# Pictures


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    side=st.integers(1, 24),
    value=st.integers(0, 255),
)
def test_a_plain_picture_stays_plain_whatever_its_shape(
    height: int, width: int, side: int, value: int
) -> None:
    fitted = image_run.fit(np.full((height, width, 3), value, np.uint8), side)
    assert fitted.shape == (1, 3, side, side)
    assert torch.equal(fitted, torch.full_like(fitted, value / 255.0))


def test_a_picture_is_cropped_to_its_middle_and_averaged() -> None:
    picture = np.zeros((4, 10, 3), np.uint8)
    picture[:, 3:5] = 200  # the left half of the middle square
    picture[:, 7:] = 77  # outside
    expected = torch.tensor([[200.0, 0.0], [200.0, 0.0]]) / 255.0
    for upright, turned in ((picture, expected), (picture.transpose(1, 0, 2), expected.T)):
        fitted = image_run.fit(np.ascontiguousarray(upright), 2)
        assert torch.equal(fitted, turned.expand(1, 3, 2, 2))


def test_a_picture_of_the_right_size_is_taken_as_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    assert np.array_equal(as_bytes(image_run.fit(picture, SIDE)), picture)


# Where it starts, and where it goes


def test_images_start_as_unit_noise_or_grey_each_with_its_own() -> None:
    given = config(image={"count": 64})
    models = load_models(given, "cpu")
    noise = image_run.start_values(given, models.prior, None, "cpu")
    assert noise.shape == (64, 3, SIDE, SIDE)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.02)
    assert not torch.equal(noise[0], noise[1])
    grey = image_run.start_values(config(image={"start": "grey"}), models.prior, None, "cpu")
    assert torch.equal(grey, torch.zeros(1, 3, SIDE, SIDE))


@pytest.mark.parametrize("space", ["latents", "pixels"])
def test_the_image_becomes_the_only_one_that_the_prior_knows(space: str) -> None:
    """All data at one image: SDS's noise cancels, and its gradient alpha/sigma (x - goal) points there."""
    goal = torch.linspace(-1.0, 1.0, 3 * SIDE * SIDE).view(1, 3, SIDE, SIDE)
    prior = GaussianPrior(lambda cameras: goal.expand(len(cameras), -1, -1, -1))
    image = {"space": space, "lr": 0.05 if space == "latents" else 0.02, "count": 2}
    given = config(reward=[], holdout_reward=[], guidance={"scale": 1.0}, steps=200, image=image)
    ensemble = RewardEnsemble(rewards=(), weights=(), options=given.reward_options)
    canvas = run(given, assemble(given, prior, ensemble, ()))
    distance = shown(given, canvas) - 0.5 * (goal + 1.0)
    assert float(distance.abs().max()) < 0.02


def test_pixels_never_leave_their_range() -> None:
    given = config(image={"space": "pixels", "lr": 0.5}, guidance={"scale": 50.0})
    models, canvas = fresh(given)
    for _ in range(4):
        image_run.advance(given, models, canvas)
        canvas.step += 1
        assert 0.0 <= canvas.values.min() <= canvas.values.max() <= 1.0
    assert float((canvas.values == 1.0).float().mean()) > 0.01  # or the range was never at stake


def test_the_learning_rate_is_the_length_of_the_first_step() -> None:
    given = config(image={"lr": 0.02})
    models, canvas = fresh(given)
    before = canvas.values.detach().clone()
    image_run.advance(given, models, canvas)
    moved = (canvas.values.detach() - before).abs()
    assert torch.allclose(moved, torch.full_like(moved, 0.02), atol=1e-5)


@pytest.mark.parametrize("space", ["latents", "pixels"])
def test_a_reward_gradient_reaches_the_image(space: str) -> None:
    """DreamReward with the reward alone from the first step on."""
    given = config(
        preference="ascent",
        ascent={"start": 0.0, "pure": 1.0},
        steps=20,
        image={"space": space, "start": "grey"},
    )
    models, canvas = fresh(given)
    before = image_run.score_images(given, models, canvas)["reward/toybox-mini"]
    while canvas.step < given.steps:
        image_run.advance(given, models, canvas)
        canvas.step += 1
    assert image_run.score_images(given, models, canvas)["reward/toybox-mini"] > before + 0.1


# Determinism, stopping and resuming


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, case: str) -> None:
    given = config(**CASES[case])
    whole = start(tmp_path / "whole", given)
    part = start(tmp_path / "part", given, should_stop=stop_at(2))
    assert (run_folder.read(part.run)["status"], part.step) == ("stopped", 2)
    assert (part.run.folder / "image.png").exists()  # its last step, to look at
    part = image_run.resume(part.run.folder, command=["test"], should_stop=stop_at(1))
    part = image_run.resume(part.run.folder, command=["test"])
    assert (part.status, part.step) == ("done", STEPS)
    assert_same(tensors(part.run), tensors(whole.run))
    a, b = ((result.run.folder / "image.png").read_bytes() for result in (part, whole))
    assert a == b
    rows = [read_metrics(result.run.metrics) for result in (part, whole)]
    timeless = [[{k: v for k, v in row.items() if "time" not in k} for row in table] for table in rows]
    assert timeless[0] == timeless[1]


def test_another_seed_gives_another_image_and_the_global_generator_does_not(tmp_path: Path) -> None:
    first = tensors(start(tmp_path, config()).run)
    torch.manual_seed(99)
    assert_same(tensors(start(tmp_path, config()).run), first)
    other = tensors(start(tmp_path, config(seed=1)).run)
    assert not torch.equal(other["image/values"], first["image/values"])


def test_a_finished_run_can_be_made_longer_but_not_shorter(tmp_path: Path) -> None:
    result = start(tmp_path, config())
    with pytest.raises(ValueError, match=f"--steps is 5, but the run is already at step {STEPS}"):
        image_run.resume(result.run.folder, steps=5, command=["test"])
    result = image_run.resume(result.run.folder, steps=8, command=["test"])
    assert (result.step, run_folder.read(result.run)["steps"]) == (8, 8)
    assert image_run.resume(result.run.folder, command=["test"]).step == 8  # the new length is remembered


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole", config())

    def killed(progress: loop.Progress) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        start(tmp_path / "killed", config(image={"checkpoint_seconds": 1e-9}), report=killed)
    (folder,) = (tmp_path / "killed").iterdir()
    assert f"the run is in {folder}" in caught.value.__notes__
    assert run_folder.read(run_folder.open_run(folder))["status"] == "stopped"
    result = image_run.resume(folder, command=["test"])
    assert_same(tensors(result.run), tensors(whole.run))


# Failures


def broken_at(monkeypatch: pytest.MonkeyPatch, steps: range | set[int], value: float) -> None:
    """The real prior, whose prediction has one bad number at some steps (counted from 0)."""
    predict, calls = ToyboxPrior.predict, iter(range(10**6))

    def bad(self: ToyboxPrior, *args: Any) -> Tensor:
        eps = predict(self, *args)
        if next(calls) in steps:
            eps[0, 0, 5, 5] = value
        return eps

    monkeypatch.setattr(ToyboxPrior, "predict", bad)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bad", [0, 2])
def test_a_broken_prediction_moves_nothing_and_is_counted(
    monkeypatch: pytest.MonkeyPatch, bad: int, value: float
) -> None:
    broken_at(monkeypatch, {bad}, value)
    given = config(guidance={"clamp": False})
    models, canvas = fresh(given)
    for step in range(4):
        before = canvas.values.detach().clone()
        moments = {k: v.clone() for k, v in canvas.optimizer.state[canvas.values].items()}
        seen = image_run.advance(given, models, canvas)
        canvas.step += 1
        assert seen.failed == (step == bad)
        assert torch.equal(canvas.values, before) == (step == bad)
        if step == bad:
            assert_same(dict(canvas.optimizer.state[canvas.values]), moments)


def test_a_run_without_finite_gradients_diverges_with_a_finite_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken_at(monkeypatch, range(2, 100), math.nan)
    with pytest.raises(loop.Diverged, match="no finite gradient in 3 steps up to step 4"):
        start(tmp_path, config(guidance={"clamp": False}, patience=3))
    (folder,) = tmp_path.iterdir()
    opened = run_folder.open_run(folder)
    assert run_folder.read(opened)["status"] == "diverged"
    assert [row["skipped"] for row in read_metrics(opened.metrics)] == [0, 0, 1, 1, 1]
    assert all(v.isfinite().all() for v in tensors(opened).values())


def test_a_multi_view_prior_is_refused_before_a_folder_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ToyboxPrior, "views", 4)
    with pytest.raises(ValueError, match="'toybox-mini' denoises 4 views of an object together"):
        start(tmp_path, config())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": {"lr": 0.0}}, "image.lr is 0.0: give more than 0"),
        ({"image": {"lr": math.inf}}, "image.lr is inf: give a finite number"),
        ({"image": {"count": 0}}, "image.count is 0: give 1 to 64"),
        ({"image": {"count": 65}}, "image.count is 65: give 1 to 64"),
        ({"image": {"log_every": 0}}, "image.log_every is 0: give at least 1"),
        ({"image": {"reward_every": 0}}, "image.reward_every is 0: give at least 1"),
        ({"image": {"checkpoint_seconds": -1.0}}, "image.checkpoint_seconds is -1.0: give 0 or more"),
        ({"steps": 0}, "steps is 0: give at least 1"),
        (
            {"source": RED, "image": {"start": "grey"}},
            "image.start is 'grey': an edit starts from its picture",
        ),
        *(({"source": RED, "score": name}, f"score is '{name}': an edit") for name in ("vsd", "csd", "ism")),
    ],
)
def test_settings_that_can_not_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_image(config(**changes))
    assert message in str(caught.value)


@pytest.mark.parametrize("source", ["", RED])
def test_a_picture_and_what_it_shows_go_together(tmp_path: Path, source: str) -> None:
    picture = None if source else as_bytes(exact(RED))
    with pytest.raises(ValueError, match="give both or neither"):
        image_run.generate(config(source=source), out=tmp_path, command=["test"], picture=picture)
    assert list(tmp_path.iterdir()) == []


# Edits


@pytest.mark.parametrize(
    ("score", "preference", "space"),
    [
        ("sds", "none", "latents"),
        ("sds", "none", "pixels"),
        ("sds", "weighted", "latents"),
        ("sds", "dpo", "latents"),
        ("sds", "psd", "latents"),
        ("sdi", "none", "latents"),
        ("sdi", "weighted", "pixels"),
    ],
)
def test_an_edit_into_what_is_there_changes_nothing_at_all(score: str, preference: str, space: str) -> None:
    """Both predictions are the same bit for bit, so that even Adam, which scales up any rest, stays put."""
    more = {"psd": {"interval": 1, "t_limit": 1.0}} if preference == "psd" else {}
    given = config(source=RED, score=score, preference=preference, image={"space": space, "count": 2}, **more)
    models, canvas = fresh(given)
    before = canvas.values.detach().clone()
    assert torch.equal(run(given, models).values, before)


@pytest.mark.parametrize("preference", ["none", "weighted"])
def test_a_red_cube_becomes_a_blue_one(preference: str) -> None:
    """DDS and RewardDDS. The distance is to the exact picture of the target on the source's background."""
    given = config(source=RED, prompt=BLUE, steps=60, preference=preference, image={"lr": 0.04})
    canvas = run(given)
    after, goal = shown(given, canvas), exact(BLUE)
    assert decibels(exact(RED), goal) < 13.0
    assert decibels(after, goal) > 18.0
    corners = (..., slice(0, 2), slice(0, 2))  # the background is not the prompt's business
    assert float((after - exact(RED))[corners].abs().max()) < 0.15
