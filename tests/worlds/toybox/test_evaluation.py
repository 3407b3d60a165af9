"""Quality against the ground truth."""

from __future__ import annotations

import random

import pytest
import torch

from splatgen.models.memory import is_out_of_memory
from splatgen.priors import PRIORS
from splatgen.rewards import REWARDS
from splatgen.scene.cameras import orbit
from splatgen.scene.splats import Splats, rgb_to_sh
from splatgen.worlds.toybox.evaluation import (
    ask,
    compare,
    evaluate,
    judged_right,
    nearest_right,
    questions,
    unseen_cameras,
)
from splatgen.worlds.toybox.grammar import COLORS, parse
from splatgen.worlds.toybox.sampling import hard_negatives
from splatgen.worlds.toybox.world import SPHERE_RADIUS, ground_truth, point_cloud

GREY = torch.full((3,), 0.5)


class Oracle:
    """A reward that knows the exact pictures: minus the squared error, views told by the camera."""

    name, views = "oracle", 1

    def __init__(self, camera):
        self.camera = camera

    def __call__(self, images, prompts):
        camera = self.camera.resized(images.shape[-1], images.shape[-2])
        truths = [ground_truth(parse(p.rsplit(",", 1)[0]), camera, GREY).rgb for p in prompts]
        return -torch.stack([(i - t[0]).square().mean() for i, t in zip(images, truths, strict=True)])


def surface_splats(caption, count=20_000):
    """Small opaque splats on the exact surface, in its exact colours."""
    points, colors = point_cloud(caption, count, torch.Generator().manual_seed(0))
    quats = torch.zeros(count, 4)
    quats[:, 0] = 1.0
    return Splats(
        means=points,
        quats=quats,
        scales=torch.full((count, 3), 0.008).log(),
        opacities=torch.full((count,), 6.0),
        sh=rgb_to_sh(colors)[:, None],
    )


def test_compare_is_perfect_on_itself_and_exact_on_known_pictures():
    rgb, alpha = torch.rand(2, 3, 8, 8), torch.zeros(2, 1, 8, 8)
    alpha[:, :, 2:6, 2:6] = 1.0
    assert compare(rgb, alpha, rgb, alpha) == pytest.approx((1.0, 100.0, 0.0))
    shifted = torch.zeros_like(alpha)
    shifted[:, :, 2:6, 4:8] = 1.0  # half of the square overlaps: 8 of 24 pixels
    iou, psnr, color = compare(rgb.clamp(0, 0.9) + 0.1, alpha, rgb.clamp(0, 0.9), shifted)
    assert iou == pytest.approx(8 / 24)
    assert psnr == pytest.approx(20.0, abs=1e-3)  # an error of 0.1 everywhere
    assert color == pytest.approx(0.1, abs=1e-6)


def test_surface_splats_are_nearly_the_truth():
    caption = parse("a red cube on top of a blue sphere")
    camera = orbit(torch.tensor([30.0]), torch.tensor([20.0]), size=64)
    found = evaluate(surface_splats(caption), caption, Oracle(camera), size=128)
    assert found.iou > 0.9  # the rasterizer's blur of half a pixel swells an opaque shell
    assert found.psnr > 23
    assert found.color_error < 0.02


def test_an_oracle_judges_the_truth_right_and_a_wrong_object_wrong():
    caption = parse("a red cube")
    camera = orbit(torch.tensor([30.0]), torch.tensor([20.0]), size=32)
    asked = questions(caption, camera)
    assert asked[0].texts[0] == "a red cube, front view"
    assert len(asked[0].texts) == len(asked[0].pictures) == 6
    for n, picture in enumerate(asked[0].pictures):
        assert nearest_right(picture[None], asked) == float(n == 0)
        assert judged_right(Oracle(camera), picture[None], asked) == float(n == 0)


@pytest.mark.parametrize("azimuth", [0.0, 180.0])
def test_a_front_is_no_question_from_behind(azimuth):
    caption = parse("a green cylinder with a red front")
    camera = orbit(torch.tensor([azimuth]), torch.tensor([10.0]), size=64)
    texts = {t.rsplit(",", 1)[0] for n in range(20) for t in ask(caption, camera, random.Random(n)).texts[1:]}
    greens = {t for t in texts if t.startswith("a green cylinder") and " next " not in t and " on " not in t}
    assert bool(greens) == (azimuth == 0.0)  # without the front, or with another


def test_order_is_no_question_from_the_side():
    caption = parse("a red cube next to a blue sphere")
    swapped = parse("a blue sphere next to a red cube")
    found = [
        hard_negatives(caption, random.Random(n), 8, front_visible=True, order_visible=visible)
        for n in range(30)
        for visible in (False,)
    ]
    assert all(swapped not in negatives for negatives in found)
    assert any(swapped in hard_negatives(caption, random.Random(n), 8, front_visible=True) for n in range(30))


def test_training_negatives_are_never_held_out():
    from splatgen.worlds.toybox.grammar import held_out

    for color in COLORS:
        caption = parse(f"a {color} cone")
        if held_out(caption):
            continue
        for n in range(10):
            found = hard_negatives(caption, random.Random(n), 6, front_visible=True, unseen=False)
            assert not any(map(held_out, found))


def test_unseen_cameras_look_all_around():
    cameras = unseen_cameras(16)
    assert len(cameras) == 8
    assert cameras.azimuth.sort().values.diff().allclose(torch.tensor(45.0))
    assert float(cameras.c2w[0, :3, 3].norm()) > SPHERE_RADIUS


def test_the_judge_is_no_reward():
    entries = {**REWARDS, **PRIORS}.items()
    assert entries
    assert not any("judge" in name or "judge" in entry.loader for name, entry in entries)


def test_out_of_memory_is_told_from_other_errors():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
