"""Every score with every preference on the miniature models: finite, deterministic, resumable to the bit."""

import dataclasses
import itertools
import math
import typing

import pytest
import torch

from splatgen.config import (
    AscentOptions,
    Config,
    DensifyOptions,
    DPOOptions,
    GuidanceOptions,
    ImageConfig,
    OutputOptions,
    PSDOptions,
    RewardOptions,
    SplatOptions,
    ViewOptions,
    VSDOptions,
    WeightedOptions,
)
from splatgen.config.methods import METHODS
from splatgen.loop import object_run
from splatgen.loop.initial_splats import starting_splats
from splatgen.loop.step import advance, load_models
from splatgen.runs import checkpoint
from splatgen.runs.metrics import read_metrics
from splatgen.scene.parameters import new_scene

SCORES = ("sds", "sdi", "vsd", "csd", "nfsd", "ism", "bridge")
PREFERENCES = ("none", "weighted", "dpo", "psd", "ascent")
CELLS = list(itertools.product(SCORES, PREFERENCES))
each_cell = pytest.mark.parametrize(
    ("score", "preference"), [pytest.param(*cell, id="+".join(cell)) for cell in CELLS]
)
VIEWS, STEPS = 2, 4
# Settings that make every piece act within four steps.
ACTING = {
    "weighted": WeightedOptions(candidates=3, top=1, bottom=1, lookahead=2, stop=1.0),
    "dpo": DPOOptions(gap=0.0),
    "psd": PSDOptions(interval=1, t_limit=1.0, lr=0.01, anneal=0.0),
    "ascent": AscentOptions(start=0.0, straight_through=0.5),
    "vsd": VSDOptions(lr=0.01),
}


def config(score, preference, **change):
    acting = {name: ACTING[name] for name in (score, preference) if name in ACTING}
    if preference == "psd" and score in ("nfsd", "bridge"):  # whose guidance has another negative
        acting["psd"] = dataclasses.replace(ACTING["psd"], learn=False)
    values = {
        "prompt": "a red cube",
        "prior": "toybox-mini",
        "reward": ("toybox-mini",),
        "score": score,
        "preference": preference,
        "steps": STEPS,
        "device": "cpu",
        "views": ViewOptions(count=VIEWS, size=(16,)),
        "splats": SplatOptions(count=100),
        "densify": DensifyOptions(start=0.5, stop=0.5),
        "output": OutputOptions(frames=0, size=16, checkpoint_seconds=0),
        **acting,
    }
    return Config(**{**values, **change})


def generate(folder, given, stop_after=STEPS):
    steps = iter(range(STEPS + 1))
    return object_run.generate(
        given, out=folder, command=["test"], should_stop=lambda: next(steps) >= stop_after
    ).run


def saved(run):
    """Everything the last checkpoint holds: splats, moments, and what score and preference learned."""
    found = checkpoint.load_latest(run.checkpoints)
    tensors = {f"{part}/{name}": v for part, values in found.parts.items() for name, v in values.items()}
    return tensors, found.state


def assert_same(a, b):
    assert a[1] == b[1]
    assert a[0].keys() == b[0].keys()
    for name, value in a[0].items():
        assert torch.equal(value, b[0][name]), name


def test_the_table_is_whole():
    hints = typing.get_type_hints(Config)
    # refine fits pictures, with no preference: tests/loop/test_refining.py
    assert typing.get_args(hints["score"]) == (*SCORES, "refine")
    assert typing.get_args(hints["preference"]) == PREFERENCES
    assert set(METHODS.values()) <= set(CELLS)


@each_cell
def test_a_run_is_finite_and_the_same_whether_it_is_stopped_or_not(tmp_path, score, preference):
    """The second run is stopped half-way and goes on with models that are loaded anew."""
    given = config(score, preference)
    straight = generate(tmp_path / "straight", given)
    halved = generate(tmp_path / "halved", given, stop_after=STEPS // 2)
    assert checkpoint.load_latest(halved.checkpoints).step == STEPS // 2
    object_run.resume(halved.folder, command=["test"])
    whole = saved(straight)
    assert_same(whole, saved(halved))
    assert all(torch.isfinite(value).all() for value in whole[0].values())
    rows = read_metrics(straight.metrics)
    assert len(rows) == STEPS
    assert all(row["skipped"] == 0 for row in rows)
    for row in rows:
        assert all(math.isfinite(value) for value in row.values())
    learned = {name.split("/")[0] for name in whole[0]}
    assert ("score" in learned) == (score == "vsd")
    learns = preference == "psd" and score not in ("nfsd", "bridge")
    assert ("preference" in learned) == learns


# What a step costs


def levels(t, lookahead):
    return math.ceil(t * lookahead - 1e-9)


def cost(score, preference, t):
    """Images through the denoiser for one view: methods.md, section 12."""
    count, kept = {"weighted": (3, 2), "dpo": (2, 2), "psd": (2, 2)}.get(preference, (1, 1))
    # The look-ahead's first predictions are the direction's own, so S(t) and not S(t) + N_w.
    ahead = levels(t, 2) if preference == "weighted" else 1
    noises = {"sdi": 2 * max(math.floor(10 * t + 1e-6), 1), "ism": count * ism_inversion(t)}.get(score, 0)
    copy = {"vsd": kept + 1, "nfsd": kept}.get(score, 0)  # nfsd's flaws, at t from 0.2 on
    learns = preference == "psd" and score not in ("nfsd", "bridge")
    return noises + 2 * count * ahead + copy + learns


def ism_inversion(t):
    """Unconditional predictions up to s = t - 0.08 in steps of 0.2, and the one that goes on to t."""
    return max(math.ceil((t - 0.08 - 0.001) / 0.2 - 1e-6), 1) + 1


@each_cell
def test_model_calls_are_those_of_the_formulas_and_no_parameter_keeps_a_gradient(score, preference):
    """One step at t = 0.7 for all views, counted at the network and in the metrics."""
    guidance = GuidanceOptions(times="annealed", t_max=(0.7, 0.65), t_min=0.6)
    given = config(score, preference, guidance=guidance)
    models = load_models(given, "cpu")
    networks = [models.prior.net, models.ensemble.rewards[0].net]
    sizes = []
    for network in networks:
        network.requires_grad_(True)
    models.prior.net.unet.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len((args or tuple(kwargs.values()))[0])), with_kwargs=True
    )
    scene = new_scene(given, starting_splats(given), "cpu")
    seen = advance(given, models, scene)
    assert seen.model_calls == sum(sizes) == VIEWS * cost(score, preference, 0.7)
    assert all(p.grad is None for network in networks for p in network.parameters())


@pytest.mark.parametrize("score", SCORES)
def test_the_number_of_batches_does_not_depend_on_the_number_of_candidates(score):
    found = []
    for count in (2, 6):
        chosen = WeightedOptions(candidates=count, top=1, bottom=1, lookahead=2, stop=1.0)
        given = config(score, "weighted", weighted=chosen)
        models = load_models(given, "cpu")
        calls = []
        models.prior.net.unet.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        advance(given, models, new_scene(given, starting_splats(given), "cpu"))
        found.append(len(calls))
    assert found[0] == found[1] <= 14


# Rewards


@pytest.mark.parametrize("preference", ["weighted", "ascent"])
def test_a_reward_that_is_held_out_is_logged_and_never_guides(tmp_path, preference):
    plain = generate(tmp_path / "plain", config("sds", preference))
    watched = generate(tmp_path / "watched", config("sds", preference, holdout_reward=("toybox-judge",)))
    assert_same(saved(plain), saved(watched))
    rows = read_metrics(watched.metrics)
    assert "holdout/toybox-judge" in rows[0]
    assert "holdout/toybox-judge" not in read_metrics(plain.metrics)[0]


@pytest.mark.parametrize("preference", ["weighted", "psd", "ascent"])
def test_several_rewards_guide_together_and_are_logged_each(tmp_path, preference):
    change = {"reward_options": RewardOptions(batch=3)}
    names = ("toybox-mini=0.7", "toybox=-0.3")
    both = generate(tmp_path / "both", config("sds", preference, reward=names, **change))
    rows = read_metrics(both.metrics)
    assert {"reward/toybox-mini", "reward/toybox"} <= set(rows[0])
    one = generate(tmp_path / "one", config("sds", preference, reward=names[:1], **change))
    a, b = saved(both)[0], saved(one)[0]
    assert any(not torch.equal(value, b[name]) for name, value in a.items() if name.startswith("splats/"))


def test_a_weight_alone_changes_nothing_where_only_ranks_count(tmp_path):
    """min-max sees the order of the candidates, not the reward's size."""
    runs = [
        generate(tmp_path / name, config("sds", "weighted", reward=(f"toybox-mini={name}",)))
        for name in ("1.0", "4.0")
    ]
    assert_same(*map(saved, runs))


def test_the_slots_are_the_same_in_2d():
    hints, image = typing.get_type_hints(Config), typing.get_type_hints(ImageConfig)
    assert all(hints[name] == image[name] for name in ("score", "preference", "prior", "reward"))
