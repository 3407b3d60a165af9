"""Refinement: pictures by the prior's own reverse steps, and splats that come nearer to them."""

from __future__ import annotations

import dataclasses

import pytest
import shelf_nets
import torch
from analytic import GaussianPrior
from run_states import assert_same, stop_at, tensors

from splatgen import formats
from splatgen.commands.common.errors import USAGE, Failure
from splatgen.commands.generate import Generate, check
from splatgen.config import ConfigError, from_dict, merge
from splatgen.config.validation import validate
from splatgen.guidance.scores.refine import Refine
from splatgen.loop import object_run, refining
from splatgen.loop.step import assemble, load_models
from splatgen.priors.pixels import averaged
from splatgen.rasterizer import render
from splatgen.rewards.ensemble import RewardEnsemble
from splatgen.runs.metrics import read_metrics
from splatgen.runs.rng import rng
from splatgen.scene.parameters import new_scene
from splatgen.scene.splats import random_ball


def config(**change):
    base = {
        "prompt": "a red cube",
        "prior": "toybox-mini",
        "reward": [],
        "steps": 6,
        "device": "cpu",
        "score": "refine",
        "refine": {"views": 4, "steps": 3, "rounds": 2},
        "views": {"count": 2, "size": [16]},
        "densify": {"rounds": 0},
        "output": {"frames": 0, "size": 16, "checkpoint_seconds": 0, "reward_every": 3},
    }
    return from_dict({**base, **change})


@pytest.fixture
def cloud(tmp_path):
    path = tmp_path / "cloud.ply"
    ball = random_ball(rng(1, 0, "test"), count=60, radius=0.5, scale=0.1, opacity=0.5)
    formats.save(ball, path)
    return str(path)


def start(folder, given, **options):
    return object_run.generate(given, out=folder, command=["test"], **options)


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_refinement_resumes_to_the_bit_with_its_pictures(tmp_path, cloud, stop):
    """Within a round, and at the step at which the next one makes its own."""
    given = config(init=cloud)
    whole = start(tmp_path / "whole", given)
    part = start(tmp_path / "part", given, should_stop=stop_at(stop))
    assert tensors(part.run)["score/pictures"].shape == (4, 3, 16, 16)
    part = object_run.resume(part.run.folder, command=["test"])
    assert_same(tensors(part.run), tensors(whole.run))
    rows = read_metrics(whole.run.metrics)
    # four views, three reverse steps, prompt and negative; then nothing for the rest of a round
    assert [row["guidance/model_calls"] for row in rows] == [24, 0, 0, 24, 0, 0]
    assert [row["refine/round"] for row in rows] == [1, 1, 1, 2, 2, 2]


def test_as_a_stage_it_goes_on_from_what_the_one_before_made(tmp_path):
    tables = [
        {"share": 0.5, "score": "sds"},
        {"share": 0.5, "score": "refine", "refine": {"views": 4, "steps": 2}},
    ]
    given = config(score="sds", refine={}, stages=tables, splats={"count": 60}, steps=8)
    whole = start(tmp_path / "whole", given)
    for stop in (4, 6):
        part = start(tmp_path / str(stop), given, should_stop=stop_at(stop))
        assert_same(tensors(object_run.resume(part.run.folder, command=["test"]).run), tensors(whole.run))


def scene_of(given, cloud):
    return new_scene(given, formats.load(cloud), "cpu")


def test_reverse_steps_of_a_known_distribution_end_at_its_mean(cloud):
    """For data N(mean, s^2) DDIM from t moves x by what is exact: x_0 - mean shrinks with s."""
    given = config(
        init=cloud, guidance={"scale": 1.0, "clamp": False}, refine={"views": 2, "steps": 400, "time": 0.6}
    )
    spread = 0.05
    prior = GaussianPrior(lambda cameras: torch.full((len(cameras), 3, 16, 16), 0.3), spread=spread)
    models = assemble(given, prior, RewardEnsemble(rewards=(), weights=(), options=given.reward_options), ())
    scene = scene_of(given, cloud)
    pictures = refining.sharpen(given, models, models.score, scene, 0)
    # the probability flow maps x_t = mean + z sqrt(alpha^2 s^2 + sigma^2) onto mean + z s
    cameras, behind = refining.round_views(given, 0, 16)
    x = 2.0 * render(scene.splats, cameras, behind).rgb - 1.0
    noise = torch.randn(x.shape, generator=rng(given.seed, 0, "refine noise"))
    alpha, sigma = (z.view(()) for z in prior.alpha_sigma(torch.tensor([0.6])))
    z = (alpha * x + sigma * noise - alpha * 0.3) / (alpha**2 * spread**2 + sigma**2).sqrt()
    expected = (0.5 * (0.3 + spread * z + 1.0)).clamp(0, 1)
    torch.testing.assert_close(pictures, expected.detach(), atol=5e-3, rtol=0)  # first order, 400 steps


def test_splats_come_nearer_to_the_pictures_of_their_round(cloud):
    given = config(init=cloud, steps=40, refine={"views": 4, "steps": 3, "rounds": 1})
    models, scene = load_models(given, "cpu"), scene_of(given, cloud)
    losses = []
    for _ in range(40):
        losses.append(float(refining.advance(given, models, scene).loss))
        scene.step += 1
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])


def test_every_view_of_a_round_has_its_turn_and_its_own_background():
    given = config(refine={"views": 6, "rounds": 2}, steps=60)
    cameras, behind = refining.round_views(given, 0, 16)
    again, _ = refining.round_views(given, 0, 32)
    other, _ = refining.round_views(given, 30, 16)
    assert len(cameras) == len(behind) == 6
    assert torch.equal(cameras.c2w, again.c2w)
    assert not torch.equal(cameras.c2w, other.c2w)

    class Scene:
        begin, step = 0, 0

        def fraction(self, steps):
            return self.step / steps

    scene, seen = Scene(), set()
    for scene.step in range(30):
        rows = refining.chosen(given, scene, 1)
        assert len(set(rows.tolist())) == 2
        seen |= set(rows.tolist())
        assert refining.round_began(given, scene) == 0
    assert seen == set(range(6))
    assert refining.chosen(dataclasses.replace(given, seed=1), scene, 2).tolist() in ([0, 1], [2, 3], [4, 5])
    scene.step = 30
    assert refining.round_began(given, scene) == 30


def test_a_prior_of_cut_outs_is_fitted_in_colour_and_coverage(tmp_path, cloud):
    nets = shelf_nets.write(tmp_path / "nets", "autoencoder", "prior")
    small = {"views": 2, "steps": 2, "rounds": 1}
    given = config(prompt="a taxi", prior="shelf", prior_options={"model": str(nets)}, init=cloud, steps=2)
    given = merge(given, {"refine": small, "views": {"background": "white"}})
    assert torch.equal(refining.round_views(given, 0, 16)[1], torch.zeros(2, 3))  # behind the splats
    result = start(tmp_path / "runs", given)
    assert result.status == "done"
    assert tensors(result.run)["score/pictures"].shape == (2, 4, 16, 16)


def test_renders_and_pictures_are_compared_at_the_smaller_side():
    seen = torch.rand(1, 4, 32, 32)
    assert float(refining.fitted(seen, averaged(seen, 16), 0.2)) == pytest.approx(0.0, abs=1e-6)
    assert float(refining.fitted(seen, seen.repeat_interleave(2, -1).repeat_interleave(2, -2), 0.2)) < 1e-6


def test_what_has_learned_nothing_yet_has_no_state():
    score = Refine(config().refine)
    assert score.state_dict() == {}
    score.load_state_dict({})
    assert score.began == -1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"refine": {"time": 0.0}}, r"refine\.time is 0\.0"),
        ({"refine": {"rounds": 0}}, r"refine\.rounds is 0"),
        ({"preference": "dpo", "reward": ["toybox-mini"]}, "no preference ranks those"),
        ({"score": "sds"}, "it acts with --score refine only"),
    ],
)
def test_settings_that_make_no_refinement_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        validate(config(**change))


def test_there_has_to_be_something_to_refine(tmp_path):
    with pytest.raises(Failure, match="this run begins with nothing") as caught:
        check(Generate(out=tmp_path), config())
    assert caught.value.code == USAGE
