"""Growing is exact in number, reproducible, and independent of the gradient's scale."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splatgen.config import Config, DensifyOptions, OutputOptions, SplatOptions, ViewOptions
from splatgen.loop.initial_splats import starting_splats
from splatgen.loop.step import advance, load_models
from splatgen.rasterizer import render
from splatgen.runs.rng import rng
from splatgen.scene.cameras import turntable
from splatgen.scene.densification import Densifier, growth_threshold
from splatgen.scene.parameters import new_scene

# Values with many ties and zeros, and values of any size.
gradients = st.lists(
    st.one_of(st.sampled_from([0.0, 0.0, 0.5, 1.0]), st.floats(0, 1e6, width=32)), min_size=1, max_size=60
)
COUNT = 60


def make(*, steps=10, seed=0, count=COUNT, sh_degree=0, **densify):
    config = Config(
        steps=steps,
        seed=seed,
        splats=SplatOptions(count=count, sh_degree=sh_degree),
        densify=DensifyOptions(**densify),
    )
    return new_scene(config, starting_splats(config), "cpu")


def stir(scene, steps=3):
    """A few Adam steps with known gradients, so that the moments are something."""
    for step in range(steps):
        for name, p in scene.params.items():
            p.grad = torch.randn(p.shape, generator=rng(0, step, name))
            scene.optimizers[name].param_groups[0]["lr"] = 1e-3
            scene.optimizers[name].step()


def moments(scene, name):
    return scene.optimizers[name].state[scene.params[name]]


def observe(scene, step, scale=1.0):
    """Render, back-propagate a fixed picture gradient times `scale`, and tell the densifier."""
    out = render(scene.splats, turntable(2, size=16))
    out.info["means2d"].retain_grad()
    out.rgb.backward(scale * torch.randn(out.rgb.shape, generator=rng(0, step, "picture")))
    scene.densifier.after(scene.params, scene.optimizers, out.info, step)


def copy_of(scene):
    return {name: p.detach().clone() for name, p in scene.params.items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# The threshold


@settings(deadline=None, max_examples=200)
@given(gradients, st.floats(0, 1), st.integers(-5, 80))
def test_growth_never_exceeds_the_share_or_the_room(values, share, room):
    g = torch.tensor(values)
    grown = int((g > growth_threshold(g, share=share, room=room)).sum())
    assert grown <= math.floor(share * int((g > 0).sum()))
    assert grown <= max(room, 0)


@settings(deadline=None, max_examples=200)
@given(st.sets(st.integers(1, 10**6), min_size=1, max_size=60), st.floats(0, 1), st.integers(0, 80))
def test_without_ties_growth_is_all_that_is_allowed_and_takes_the_largest(values, share, room):
    g = torch.tensor([0.001 * value for value in sorted(values, key=lambda v: v * 7919 % 10007)])
    grows = g > growth_threshold(g, share=share, room=room)
    assert int(grows.sum()) == min(math.floor(share * len(g)), room)
    if grows.any() and not grows.all():
        assert g[grows].min() > g[~grows].max()


@pytest.mark.parametrize(("values", "grown"), [([1.0] * 10, 0), ([2.0, 1, 1, 1], 1), ([2.0, 2, 1, 0], 2)])
def test_ties_at_the_limit_stay_out(values, grown):
    g = torch.tensor(values)
    assert int((g > growth_threshold(g, share=0.7, room=100)).sum()) == grown


def test_unseen_splats_never_grow():
    g = torch.tensor([0.0, 0, 3, 0])
    assert int((g > growth_threshold(g, share=1.0, room=100)).sum()) == 1
    assert growth_threshold(torch.zeros(5), share=1.0, room=100) == math.inf


# When


@pytest.mark.parametrize(
    ("steps", "refine", "reset", "begin"), [(10, {4, 6, 8}, {5}, 2), (100, {40, 60, 80}, {50}, 20)]
)
def test_rounds_are_fractions_of_the_run(steps, refine, reset, begin):
    options = DensifyOptions(start=0.2, stop=0.8, rounds=3, reset=(0.5,))
    densifier = Densifier(options, steps=steps, seed=0)
    assert densifier.refine_at == refine
    assert densifier.reset_at == reset
    assert [s for s in range(steps) if densifier.watches(s)] == list(range(begin, max(refine) + 1))


@pytest.mark.parametrize("options", [DensifyOptions(start=0.5, stop=0.5), DensifyOptions(rounds=0)])
def test_it_can_be_turned_off(options):
    densifier = Densifier(options, steps=10, seed=0)
    assert not densifier.refine_at
    assert not any(densifier.watches(step) for step in range(10))


# How


def test_a_round_grows_the_share_exactly_and_starts_a_new_count():
    scene = make(start=0.0, stop=0.2, rounds=1, grow=0.25, prune_opacity=1e-6)
    observe(scene, 1)
    visible = int((scene.densifier.state["count"] > 0).sum())
    observe(scene, 2)
    assert len(scene.params["means"]) == COUNT + math.floor(0.25 * visible)
    for name in ("grad2d", "count"):
        assert scene.densifier.state[name].shape == (len(scene.params["means"]),)
        assert (scene.densifier.state[name] == 0).all()


@pytest.mark.parametrize(("split_scale", "factor"), [(10.0, 1.0), (1e-4, 1 / 1.6)])
def test_small_splats_are_cloned_and_large_ones_split(split_scale, factor):
    scene = make(start=0.0, stop=0.1, rounds=1, grow=0.25, split_scale=split_scale)
    observe(scene, 1)
    scales = scene.params["scales"].exp()[:, 0]
    grown = len(scales) - COUNT
    changed = (scales - 0.07 * factor).abs() < 1e-6
    assert grown > 0
    assert int(changed.sum()) == (len(scales) if factor == 1 else 2 * grown)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_scale_of_the_guidance_does_not_matter(scale):
    scenes = [make(start=0.0, stop=0.3, rounds=2, grow=0.3) for _ in range(2)]
    for scene, factor in zip(scenes, (1.0, scale), strict=True):
        for step in range(1, 4):
            observe(scene, step, factor)
    assert len(scenes[0].params["means"]) > COUNT
    assert_same(copy_of(scenes[0]), copy_of(scenes[1]))


@pytest.mark.parametrize("room", [0, 1, 5])
def test_the_cap_holds_in_a_round(room):
    scene = make(start=0.0, stop=0.1, rounds=1, grow=1.0, max_splats=COUNT + room)
    observe(scene, 1)
    assert len(scene.params["means"]) == COUNT + room


@pytest.mark.parametrize("sh_degree", [0, 1])
def test_the_cap_holds_over_a_whole_run(sh_degree):
    cap = 150
    config = Config(
        prompt="a red cube",
        prior="toybox-mini",
        reward=(),
        steps=12,
        views=ViewOptions(count=2, size=(16,)),
        splats=SplatOptions(count=100, sh_degree=sh_degree),
        densify=DensifyOptions(start=0.0, stop=0.95, rounds=11, grow=1.0, max_splats=cap, reset=(0.5,)),
        output=OutputOptions(frames=0, size=16),
    )
    scene = new_scene(config, starting_splats(config), "cpu")
    models = load_models(config, "cpu")
    counts = []
    while scene.step < config.steps:
        advance(config, models, scene)
        scene.step += 1
        counts.append(len(scene.params["means"]))
        for name, p in scene.params.items():
            assert len(p) == counts[-1]
            assert moments(scene, name)["exp_avg"].shape == p.shape
            assert p.isfinite().all()
    assert max(counts) == cap


def test_a_round_is_reproducible_and_leaves_the_global_generator_alone():
    results = []
    for noise in (1, 2):
        scene = make(start=0.0, stop=0.1, rounds=1, grow=0.5, split_scale=1e-4)
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        observe(scene, 1)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(copy_of(scene))
    assert_same(*results)


def test_another_seed_splits_otherwise():
    results = []
    for seed in (0, 1):
        scene = make(start=0.0, stop=0.1, rounds=1, grow=0.5, split_scale=1e-4)
        scene.densifier.seed = seed
        observe(scene, 1)
        results.append(copy_of(scene))
    assert not torch.equal(results[0]["means"], results[1]["means"])


def test_old_splats_keep_their_moments_and_new_ones_start_at_zero():
    scene = make(start=0.0, stop=0.1, rounds=1, grow=0.5, split_scale=10.0, prune_opacity=1e-6)
    stir(scene)
    before = {name: moments(scene, name)["exp_avg"].clone() for name in scene.params}
    observe(scene, 1)
    for name in scene.params:
        found = moments(scene, name)["exp_avg"]
        assert torch.equal(found[:COUNT], before[name])
        assert (found[COUNT:] == 0).all()
        assert scene.optimizers[name].param_groups[0]["params"][0] is scene.params[name]


def test_faint_and_large_splats_are_removed():
    scene = make(start=0.0, stop=0.1, rounds=1, grow=0.0, prune_opacity=0.02, prune_scale=0.5)
    with torch.no_grad():
        scene.params["opacities"][:3] = math.log(0.019 / 0.981)
        scene.params["opacities"][3] = math.log(0.021 / 0.979)
        scene.params["scales"][10, 1] = math.log(0.51)
        scene.params["scales"][11, 1] = math.log(0.49)
    kept = [n for n in range(COUNT) if n not in (0, 1, 2, 10)]
    expected = scene.params["means"][kept].clone()
    observe(scene, 1)
    assert torch.equal(scene.params["means"], expected)


def test_the_cloud_is_never_emptied():
    scene = make(start=0.0, stop=0.1, rounds=1, grow=0.0, prune_opacity=0.9)
    observe(scene, 1)
    assert len(scene.params["means"]) == COUNT


# Opacity resets


def test_opacities_are_reset_at_the_asked_steps_and_lose_their_moments():
    scene = make(start=0.5, stop=0.5, reset=(0.3, 0.6), prune_opacity=0.02)
    stir(scene)
    with torch.no_grad():
        scene.params["opacities"][0] = -6.0  # fainter than the reset's value: left as it is
    others = {name: moments(scene, name)["exp_avg"].clone() for name in scene.params if name != "opacities"}
    resets = []
    for step in range(10):
        before = scene.params["opacities"].detach().clone()
        scene.densifier.after(scene.params, scene.optimizers, {}, step)
        if not torch.equal(scene.params["opacities"], before):
            resets.append(step)
            torch.testing.assert_close(
                scene.params["opacities"][1:].sigmoid(), torch.full((COUNT - 1,), 0.04)
            )
            assert scene.params["opacities"][0] == -6.0
            state = moments(scene, "opacities")
            assert (state["exp_avg"] == 0).all()
            assert (state["exp_avg_sq"] == 0).all()
            with torch.no_grad():
                scene.params["opacities"][1:] = 1.0
    assert resets == [3, 6]
    for name, value in others.items():
        assert torch.equal(moments(scene, name)["exp_avg"], value)


# State


def test_the_state_survives_a_checkpoint():
    """A round after reloading equals a round without."""
    results = []
    for reload in (False, True):
        scene = make(start=0.0, stop=0.2, rounds=1, grow=0.5)
        observe(scene, 0)
        observe(scene, 1)
        if reload:
            fresh = make(start=0.0, stop=0.2, rounds=1, grow=0.5)
            fresh.densifier.load_state_dict(scene.densifier.state_dict())
            scene = fresh
        observe(scene, 2)
        results.append(copy_of(scene))
    assert len(results[0]["means"]) > COUNT
    assert_same(*results)
