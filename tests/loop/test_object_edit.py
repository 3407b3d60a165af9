"""Edits: where the source goes and comes back, what is kept, and that a resume sees the same.

Everything runs on the miniature models of 16 pixels.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from splatgen import formats
from splatgen.config import (
    Config,
    ConfigError,
    DensifyOptions,
    EditOptions,
    OutputOptions,
    RegulariseOptions,
    ViewOptions,
)
from splatgen.loop import loop, object_edit, object_run
from splatgen.loop.step import load_models, make_moment
from splatgen.rasterizer import render
from splatgen.runs import checkpoint
from splatgen.runs.metrics import read_metrics
from splatgen.runs.rng import rng
from splatgen.scene import placement as placing
from splatgen.scene.cameras import turntable
from splatgen.scene.placement import IDENTITY, Placement, placement
from splatgen.scene.splats import Splats, concatenate, rgb_to_sh

STEPS = 6
RED = (0.75, 0.08, 0.08)


def config(**change: Any) -> Config:
    values: dict[str, Any] = {
        "prompt": "a blue cube",
        "source": "a red cube",
        "prior": "toybox-mini",
        "reward": ("toybox-mini",),
        "steps": STEPS,
        "device": "cpu",
        "views": ViewOptions(count=2, size=(16,)),
        "densify": DensifyOptions(rounds=0),
        "regularise": RegulariseOptions(radius=0.0, aspect=0.0),
        "output": OutputOptions(frames=0, size=16, checkpoint_seconds=0, reward_every=2),
    }
    return Config(**{**values, **change})


def red_cube(count: int = 150, *, degree: int = 0) -> Splats:
    """Splats that fill the toybox's cube."""
    sh = torch.zeros(count, (degree + 1) ** 2, 3)
    sh[:, 0] = rgb_to_sh(torch.tensor(RED))
    sh[:, 1:] = 0.05 * torch.randn(sh[:, 1:].shape, generator=rng(1, 0, "sh"))
    quats = torch.nn.functional.normalize(torch.randn(count, 4, generator=rng(1, 0, "quats")), dim=-1)
    return Splats(
        means=1.04 * torch.rand(count, 3, generator=rng(1, 0, "means")) - 0.52,
        quats=quats,
        scales=torch.full((count, 3), 0.07).log(),
        opacities=torch.full((count,), 2.0),
        sh=sh,
    )


def moved(splats: Splats, scale: float, offset: tuple[float, float, float]) -> Splats:
    """The same object elsewhere and in another size."""
    return Placement(center=offset, size=scale).put_back(splats)


def seen(splats: Splats) -> Tensor:
    return render(splats, turntable(2, size=16), torch.full((3,), 0.5)).rgb


def stop_at(step: int) -> Any:
    """A should_stop that lets `step` steps of this process pass."""
    calls = iter(range(10**6))
    return lambda: next(calls) >= step


def start(folder: Path, splats: Splats, given: Config | None = None, **options: Any) -> loop.Result:
    return object_run.edit(given or config(), splats, out=folder, command=["test"], **options)


def last(result: loop.Result) -> dict[str, Tensor]:
    """What the latest checkpoint holds: splats, moments and the densifier's statistics."""
    parts = checkpoint.load_latest(result.run.checkpoints).parts
    return {f"{part}/{name}": v for part, values in parts.items() for name, v in values.items()}


# Into view and back

SCALES = st.floats(-3.0, 3.0).map(lambda power: 10.0**power)
SHIFTS = st.tuples(*[st.floats(-4.0, 4.0)] * 3)  # in sizes of the object


@settings(max_examples=15)
@given(scale=SCALES, shift=SHIFTS)
def test_an_object_of_any_size_and_place_is_seen_alike_and_comes_back(
    scale: float, shift: tuple[float, float, float]
) -> None:
    usual = red_cube(60, degree=1)
    foreign = moved(usual, scale, (scale * shift[0], scale * shift[1], scale * shift[2]))
    where = placement(foreign, "always")
    placed = where.place(foreign)
    torch.testing.assert_close(
        seen(placed), seen(placement(usual, "always").place(usual)), atol=2e-3, rtol=0.0
    )
    back = where.put_back(placed)
    torch.testing.assert_close(back.means, foreign.means, atol=1e-6 * scale, rtol=1e-6)
    torch.testing.assert_close(back.scales, foreign.scales, atol=1e-5, rtol=0.0)
    for name in ("quats", "opacities", "sh"):
        assert torch.equal(getattr(back, name), getattr(foreign, name))


@pytest.mark.parametrize("fit", ["auto", "never"])
def test_an_object_in_view_is_left_to_the_bit(fit: Any) -> None:
    splats = red_cube()
    where = placement(splats, fit)
    assert where == IDENTITY
    assert where.put_back(where.place(splats)) is splats


@pytest.mark.parametrize(("scale", "offset"), [(0.1, 0.0), (10.0, 0.0), (1.0, 2.0), (1.0, 0.6)])
def test_an_object_out_of_view_or_tiny_is_moved(scale: float, offset: float) -> None:
    foreign = moved(red_cube(), scale, (offset, 0.0, 0.0))
    where = placement(foreign, "auto")
    assert where != IDENTITY
    reach = where.place(foreign).means.norm(dim=-1)
    assert 0.6 < float(reach.quantile(0.95)) < placing.FITTED
    assert placement(foreign, "never") == IDENTITY


def test_strays_move_nothing() -> None:
    splats = red_cube()
    strays = dataclasses.replace(splats.select(torch.arange(3)), means=torch.full((3, 3), 500.0))
    assert placement(concatenate([splats, strays]), "auto") == IDENTITY
    faint = moved(splats, 30.0, (40.0, 0.0, 0.0))
    faint = dataclasses.replace(faint, opacities=torch.full_like(faint.opacities, -9.0))
    assert placement(concatenate([splats, faint]), "auto") == IDENTITY


def test_one_splat_is_placed_by_its_own_size() -> None:
    one = dataclasses.replace(red_cube(1), means=torch.tensor([[5.0, -7.0, 2.0]]))
    where = placement(one, "auto")
    assert where.center == (5.0, -7.0, 2.0)
    assert where.size == pytest.approx(0.07 / placing.FITTED)


def test_splats_without_a_size_are_refused() -> None:
    huge = dataclasses.replace(red_cube(), scales=torch.full((150, 3), 1e4))
    with pytest.raises(ValueError, match="radius of inf: remove its broken splats"):
        placement(huge, "auto")


# What is kept


def moment_of(before: Tensor, after: Tensor) -> Any:
    """A real step's moment whose x and source are given."""
    given = config()
    models = load_models(given, "cpu")
    cameras = turntable(len(after), size=16)
    x = models.prior.encode(before)
    return make_moment(given, models, step=0, x=after, images=after, cameras=cameras, before=x)


def test_the_pull_is_toward_the_source_and_does_not_grow_with_the_change() -> None:
    before = torch.full((2, 3, 16, 16), 0.5)  # x of 0
    after = torch.zeros_like(before)
    after[0], after[1, 0], after[1, 1] = -0.9, 0.5, object_edit.NEAR / 4
    found = object_edit.pull(moment_of(before, after), 0.3, "uniform")
    torch.testing.assert_close(found[0], torch.full_like(found[0], -0.3))
    torch.testing.assert_close(found[1, 0], torch.full_like(found[1, 0], 0.3))
    torch.testing.assert_close(found[1, 1], torch.full_like(found[1, 1], 0.3 / 4))
    assert not found[1, 2].any()


def test_the_pull_has_the_weight_of_the_score() -> None:
    moment = moment_of(torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 16, 16))
    _, sigma = moment.amplitudes()
    plain, weighted = (object_edit.pull(moment, 0.3, name) for name in ("uniform", "sds"))
    torch.testing.assert_close(weighted, sigma**2 * plain)


@pytest.mark.parametrize("score", ["sds", "sdi"])
def test_equal_prompts_change_nothing_to_the_bit(tmp_path: Path, score: Any) -> None:
    result = start(tmp_path, red_cube(40), config(prompt="a red cube", score=score))
    source = object_edit.load_source(result.run)
    for name, value in (
        object_run.load_scene(config(), result.run.checkpoints, "cpu")[0].splats.tensors().items()
    ):
        assert torch.equal(value, getattr(source, name)), name


def test_a_stronger_pull_keeps_more(tmp_path: Path) -> None:
    change = []
    for keep in (0.0, 0.1, 10.0):
        result = start(tmp_path, red_cube(), config(edit=EditOptions(keep=keep), steps=10))
        difference = seen(formats.load(result.run.splats_ply)) - seen(red_cube())
        change.append(float(difference.square().mean().sqrt()))
    assert change[0] > change[1] > 2 * change[2]


# A run


def test_an_edit_moves_toward_the_target(tmp_path: Path) -> None:
    result = start(tmp_path, red_cube(), config(steps=30))
    rewards = [
        row["reward/toybox-mini"] for row in read_metrics(result.run.metrics) if row["step"] in (0, 29)
    ]
    assert rewards[1] > rewards[0] + 0.05
    splats = formats.load(result.run.splats_ply)
    assert all(v.isfinite().all() for v in splats.tensors().values())
    red, _, blue = (seen(splats) - seen(red_cube())).mean((0, 2, 3)).tolist()
    assert red < -0.02 < 0.02 < blue


def test_splats_come_back_to_where_they_were_with_their_degree(tmp_path: Path) -> None:
    foreign = moved(red_cube(60, degree=1), 40.0, (300.0, -20.0, 5.0))
    result = start(tmp_path, foreign, config(prompt="a red cube"))
    found = formats.load(result.run.splats_ply)
    torch.testing.assert_close(found.means, foreign.means, atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(found.scales, foreign.scales, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(found.sh, foreign.sh)


def test_the_preview_shows_the_source_above_the_result(tmp_path: Path) -> None:
    result = start(tmp_path, red_cube(), config(steps=30, output=OutputOptions(frames=0, size=24)))
    sheet = np.asarray(Image.open(result.run.preview)).astype(float)
    assert sheet.shape == (2 * 24, 8 * 24, 3)
    before, after = sheet[12, 12], sheet[24 + 12, 12]
    assert before[0] > 2 * before[2]
    assert after[2] - before[2] > 20


def test_a_source_above_the_cap_raises_it() -> None:
    found = object_edit.adapted(config(densify=DensifyOptions(max_splats=100)), red_cube(150, degree=2))
    assert found.densify.max_splats == 150
    assert (found.splats.count, found.splats.sh_degree) == (150, 2)
    assert object_edit.adapted(config(), red_cube(150)).densify.max_splats == 20_000


@pytest.mark.parametrize("stop", [1, 4])
@pytest.mark.parametrize("change", [{}, {"score": "sdi"}, {"densify": DensifyOptions(grow=0.3)}])
def test_a_resumed_edit_is_equal_to_the_bit(tmp_path: Path, stop: int, change: dict[str, Any]) -> None:
    splats = moved(red_cube(60, degree=1), 7.0, (1.0, 2.0, 30.0))
    straight = start(tmp_path / "a", splats, config(**change))
    stopped = start(tmp_path / "b", splats, config(**change), should_stop=stop_at(stop))
    assert (stopped.status, stopped.step) == ("stopped", stop)
    resumed = object_run.resume(stopped.run.folder, command=["again"])
    assert resumed.status == "done"
    expected, found = last(straight), last(resumed)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    ours, theirs = (formats.load(r.run.splats_ply).tensors() for r in (straight, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_edit_without_its_source_cannot_go_on(tmp_path: Path) -> None:
    stopped = start(tmp_path, red_cube(40), should_stop=stop_at(1))
    (stopped.run.folder / object_edit.SOURCE).unlink()
    with pytest.raises(ValueError, match=r"source\.ply is missing: an edit needs what it started from"):
        object_run.resume(stopped.run.folder, command=["again"])


@pytest.mark.parametrize("preference", ["weighted", "dpo", "psd", "ascent"])
def test_every_preference_ranks_an_edit(tmp_path: Path, preference: Any) -> None:
    result = start(tmp_path, red_cube(40), config(preference=preference, steps=3))
    assert all(v.isfinite().all() for v in last(result).values())


# What is refused


@pytest.mark.parametrize("score", ["vsd", "csd", "ism"])
def test_scores_that_share_no_noise_are_refused(tmp_path: Path, score: Any) -> None:
    with pytest.raises(ConfigError, match=f"score is '{score}': an edit subtracts .* use sds or sdi"):
        start(tmp_path, red_cube(), config(score=score))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": ""}, "source is empty"),
        ({"edit": EditOptions(keep=-1.0)}, r"edit\.keep is -1\.0"),
        ({"edit": EditOptions(keep=float("nan"))}, r"edit\.keep is nan"),
    ],
)
def test_settings_that_make_no_edit_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        start(tmp_path, red_cube(), config(**change))
    assert not list(tmp_path.iterdir())


def test_splats_that_show_nothing_are_refused(tmp_path: Path) -> None:
    splats = red_cube()
    for given_, words in (
        (splats.select(torch.zeros(0, dtype=torch.long)), "holds no splats"),
        (dataclasses.replace(splats, opacities=torch.full((150,), -9.0)), "150 splats, all invisible"),
    ):
        with pytest.raises(ValueError, match=words):
            start(tmp_path, given_)
    assert not list(tmp_path.iterdir())


def test_a_run_from_nothing_takes_no_source(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="source is 'a red cube': a run from nothing has none"):
        object_run.generate(config(), out=tmp_path, command=["test"])
    assert not list(tmp_path.iterdir())
