"""Metrics against their definitions and against direct calls."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny_sweep as tiny
import torch
from torch import Tensor

from splatgen.commands.common import checks
from splatgen.commands.eval import VIEWS as NAMES
from splatgen.commands.eval import names
from splatgen.config import Config, from_dict
from splatgen.models.budget import LoadOptions
from splatgen.rewards import JUDGES, load_reward
from splatgen.runs.run_folder import Run
from splatgen.scene.splats import Splats
from splatgen.sweeps import metrics
from splatgen.sweeps.evaluation import entries, numbers
from splatgen.sweeps.metrics import Metrics, Subject, faces
from splatgen.sweeps.splat_statistics import NEIGHBOURS, neighbour_distance, statistics
from splatgen.sweeps.views import VIEWS, pictures, ssim
from splatgen.worlds.toybox import weights_folder

needs_weights = pytest.mark.skipif(
    any(checks.missing_weights(name, weights_folder()) for name in ("mini-prior", "mini-reward", "judge")),
    reason="the toybox weights are not there",
)


def random_pictures(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.rand(
        count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def test_structural_similarity_is_its_definition() -> None:
    """Wang et al. 2004, equation 13, written out for every window."""
    a, b = random_pictures(1, 13), random_pictures(1, 13, seed=1)
    place = torch.arange(11, dtype=torch.float64) - 5
    weight = torch.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    found = []
    for channel in range(3):
        for y in range(3):
            for x in range(3):
                p, q = (z[0, channel, y : y + 11, x : x + 11] for z in (a, b))
                mp, mq = (weight * p).sum(), (weight * q).sum()
                vp, vq = (weight * (p - mp) ** 2).sum(), (weight * (q - mq) ** 2).sum()
                cross = (weight * (p - mp) * (q - mq)).sum()
                top = (2 * mp * mq + 1e-4) * (2 * cross + 9e-4)
                found.append(float(top / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))))
    assert float(ssim(a, b)) == pytest.approx(sum(found) / len(found), rel=1e-9)


def test_structural_similarity_is_one_of_the_same_and_symmetric() -> None:
    a, b = random_pictures(4, 20), random_pictures(4, 20, seed=1)
    torch.testing.assert_close(ssim(a, a), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(ssim(a, b), ssim(b, a))
    assert bool((ssim(a, b) < 0.5).all())


def cloud(means: Tensor, scales: Tensor, opacity: float = 2.0) -> Splats:
    n = len(means)
    quats = torch.tensor([1.0, 0, 0, 0]).expand(n, 4)
    return Splats(
        means=means, quats=quats, scales=scales, opacities=torch.full((n,), opacity), sh=torch.zeros(n, 1, 3)
    )


def test_needles_and_floaters_are_counted_and_discs_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(100, 3, generator=generator)
    means[:3] += 20.0 * torch.arange(1, 4)[:, None]  # far from all others
    scales = torch.full((100, 3), math.log(0.05))
    scales[:10, 0] += math.log(11.0)  # needles
    scales[10:30, 0] -= math.log(50.0)  # discs
    found = statistics(cloud(means, scales))
    assert (found["count"], found["needles"], found["floaters"]) == (
        100.0,
        pytest.approx(0.1),
        pytest.approx(0.03),
    )
    assert found["opacity"] == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert statistics(cloud(means, scales, opacity=-9.0))["visible"] == 0.0


@pytest.mark.parametrize("count", [0, 1, 2, 5, 40])
def test_distance_to_a_neighbour_is_that_of_a_sorted_list(count: int) -> None:
    means = torch.rand(count, 3, generator=torch.Generator().manual_seed(count))
    found = neighbour_distance(means)
    for n in range(count):
        others = sorted(float((means[n] - means[m]).norm()) for m in range(count) if m != n)
        expected = others[min(NEIGHBOURS, len(others)) - 1] if others else 0.0
        assert float(found[n]) == pytest.approx(expected, abs=1e-5)
    assert len(found) == count
    assert statistics(cloud(means, torch.zeros(count, 3)))["count"] == count


def test_sets_of_views_are_what_their_names_say() -> None:
    assert set(VIEWS) == set(NAMES.__args__)
    for name, cameras in VIEWS.items():
        made, again = cameras(32), cameras(32)
        assert len(made) == int(name.rpartition("-")[2])
        assert torch.equal(made.c2w, again.c2w)


# A share of azimuths from which the front is seen again


def subject(prompt: str) -> Subject:
    config = from_dict({"prompt": prompt, "prior": "toybox-mini"})
    splats = cloud(torch.zeros(1, 3), torch.zeros(1, 3))
    cameras = VIEWS["random-10"](32)
    run = Run(folder=Path("none"))
    return Subject(run=run, config=config, splats=splats, cameras=cameras, images=torch.zeros(1, 3, 32, 32))


def test_a_true_object_has_one_front_and_janus_has_many(monkeypatch: pytest.MonkeyPatch) -> None:
    marked = subject("a red cube with a blue front")
    exact = metrics._around(False, marked.config.prompt).rgb
    monkeypatch.setattr(metrics.shelf, "seen", lambda *_: (exact, None))
    assert faces(marked) == {"faces/front_again": 0.0}
    monkeypatch.setattr(metrics.shelf, "seen", lambda *_: (exact[:1].expand_as(exact), None))
    assert faces(marked) == {"faces/front_again": 1.0}
    half = torch.cat([exact[:12], exact[:1].expand(12, -1, -1, -1)])
    monkeypatch.setattr(metrics.shelf, "seen", lambda *_: (half, None))
    assert 0.3 < faces(marked)["faces/front_again"] < 0.7


def test_what_is_the_same_from_all_sides_has_no_front() -> None:
    assert faces(subject("a red sphere")) == {}


def test_a_prior_of_no_world_has_no_truth() -> None:
    assert not metrics.has_truth(Config(prior="sd15"))


# Runs


@needs_weights
def test_rewards_are_those_of_a_direct_call(tmp_path: Path) -> None:
    sweep = tiny.made(tiny.plan("sds", prompts=("a red cube",)), tmp_path)
    (entry,) = entries([sweep.folder])
    assert entry.method == "sds"
    run = Run(folder=entry.folder)
    found = numbers(run, ["toybox-judge", "truth", "consistency"], "random-10", 48, Metrics(LoadOptions()))
    from splatgen import formats
    from splatgen.loop.step import reward_prompts

    cameras = VIEWS["random-10"](48)
    images = pictures(formats.load(run.splats_ply), cameras)
    prompts = reward_prompts(sweep.plan.first, cameras)
    with torch.no_grad():
        direct = load_reward("toybox-judge", LoadOptions())(images, prompts).mean()
    assert found["toybox-judge"] == pytest.approx(float(direct), abs=1e-6)
    assert images.shape == (10, 3, 48, 48)
    assert float(images[:, :, 0, 0].min()) > 0.99  # white
    assert -1 <= found["truth/ssim"] <= 1
    assert 0.5 < found["consistency/least"] <= found["consistency/mean"] <= 1


def test_what_needs_weights_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    found = names(None)
    assert found["truth"] is found["toybox-judge"] is None
    assert found["clip"] == "splatgen fetch clip"
    assert set(JUDGES) < set(found)
