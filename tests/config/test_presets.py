"""Presets: they keep what was published, say where it is from, and run."""

from __future__ import annotations

import math
import re
import shlex
import typing
from pathlib import Path
from typing import Any

import pytest
import torch

from splatgen.commands.generate import read
from splatgen.config import Config, Method, from_dict, merge, presets, read_preset, to_dict
from splatgen.config.validation import validate
from splatgen.loop.initial_splats import starting_splats
from splatgen.loop.step import advance, load_models
from splatgen.models.weights import PUBLISHED as PUBLISHED_WEIGHTS
from splatgen.priors import PRIORS
from splatgen.rewards import JUDGES
from splatgen.scene.parameters import new_scene

NAMES = sorted(presets())
METHODS_PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"

BEST_AND_WORST = {
    "weighted.strategy": "min-max",
    "weighted.top": 2,
    "weighted.bottom": 2,
    "weighted.top_weight": 0.9,
    "weighted.bottom_weight": 0.1,
    "weighted.scale": 7.5,
}
TORCHS_BETAS = {"lr.betas": (0.9, 0.999)}
# positions from 0.001 x 10 to 0.00002 x 10 within 300 of 500 steps, geometrically; the others stay
ITS_RATES = {
    **TORCHS_BETAS,
    "lr.means": 0.01,
    "lr.means_fall": (0, 300 / 500, 0.02),
    "lr.scales": 0.005,
    "lr.quats": 0.005,
    "lr.opacities": 0.05,
    "lr.sh": 0.01,
    "lr.final": 1,
}
DREAMGAUSSIAN = {
    **ITS_RATES,
    "views.background": "white-or-black",
    "views.elevation_law": "degrees",
    "steps": 500,
    "views.count": 1,
    "views.elevation": (-30, 30),
    "views.distance": (2.5, 2.5),
    "views.fov": (49.1, 49.1),
}
LINEAR = {"guidance.times": "annealed", "guidance.t_max.0": 0.98, "guidance.t_min": 0.02}
MVDREAM = {
    **ITS_RATES,
    "views.elevation_law": "mixed",
    "views.background": "random",
    "steps": 10_000,
    "views.count": 4,
    "views.size": (64, 256),
    "views.elevation": (0, 30),
    "guidance.times": "random",
    "guidance.t_min": 0.02,
    "guidance.t_max": (0.98, 0.5),
    "guidance.anneal": (0, 0.8),
    "guidance.view_prompts": "none",
}
RECONSTRUCTION = {"guidance.scale": 50, "guidance.rescale": 0.5, "guidance.weighting": "sigma"}

LUCIDDREAMER = {
    **TORCHS_BETAS,
    "guidance.perp_neg": True,
    "views.count": 4,
    "views.elevation": (90 - 105, 90 - 45),
    "views.distance": (5.2, 5.5),
    "views.fov": (math.degrees(0.32), math.degrees(0.60)),
    "lr.means": 0.00016 * 3.5,
    "lr.means_fall": (0, 1, 0.0000016 / 0.00016),
    "lr.scales": 0.005,
    "lr.quats": 0.001,
    "lr.final": 0.001 / 0.005,  # of scales, and 0.0002 / 0.001 of rotations
    "lr.opacities": 0.05,
    "lr.opacities_fall": (0, 1, 1),
    "lr.sh": 0.005,
    "lr.sh_fall": (0, 1, 0.003 / 0.005),
    "densify.reset": tuple(step / 5000 for step in range(300, 3000, 300)),
    "densify.prune_opacity": 0.01 / 2,
    # 1 each beside 0.1 times a sum over four views: 0.25 / 0.1 beside their mean
    "regularise.scale": 0.25 / 0.1,
    "regularise.tv": 0.25 / 0.1,
    "regularise.depth_tv": 0.25 / 0.1,
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "sds": {
        "score": "sds",
        "preference": "none",
        "guidance.scale": 100,
        "guidance.weighting": "sds",
        **DREAMGAUSSIAN,
        **LINEAR,
    },
    "threestudio-3dgs": {
        "score": "sds",
        "preference": "none",
        "steps": 5000,
        "guidance.scale": 1 + 100,
        "guidance.weighting": "sds",
        "guidance.t_min": 0.02,
        "guidance.t_max": (0.98, 0.5),
        "guidance.anneal": (1000 / 5000, 1000 / 5000),
        "views.count": 4,
        "views.fov": (60, 70),
        "views.elevation": (-20, 90),
        "splats.count": 4096,
        "splats.radius": 0.8,
        "views.background": "white-or-black",
        "views.elevation_law": "mixed",
        "guidance.view_limits": (45, 60),
        "lr.means": 0.001,
        "lr.means_fall": (0, 1000 / 5000, 0.00002 / 0.001),
        "lr.final": 1,
        "regularise.position": 1.0 / 0.1,
        "regularise.mass": 0.0001 / 0.1,
        "regularise.axes": 0.0001 / 0.1,
        "regularise.tv": 1.0 / 0.1,
        "regularise.radius": 0,
        "regularise.aspect": 0,
        **TORCHS_BETAS,
    },
    "ism": {
        "score": "ism",
        "preference": "none",
        "steps": 5000,
        "ism.interval": 0.08,
        "ism.interval_start": 0.1,
        "ism.warmup": 1500 / 5000,
        "ism.step": 0.2,
        "ism.start": 0.001,
        "ism.offset": 0.1,
        "guidance.scale": 7.5,
        "guidance.weighting": "sigma",
        "guidance.times": "shared",
        "guidance.t_min": 0.02,
        "guidance.t_max": (0.98, 0.5),
        "guidance.anneal": (0, 1500 / 5000),
        **LUCIDDREAMER,
    },
    "rfds-sd3": {
        "score": "sds",
        "preference": "none",
        "steps": 15_000,
        "guidance.scale": 100,
        "guidance.weighting": "flow",
        "guidance.t_min": 1 - 980 / 1000,
        "guidance.t_max": (1 - 300 / 1000, 1 - 300 / 1000),
        "guidance.shift": 3,
        "guidance.view_limits": (30, 60),
        "views.elevation": (-10, 45),
        "views.elevation_law": "mixed",
        "views.distance": (1.0, 1.5),
        "views.fov": (40, 70),
        **ITS_RATES,
    },
    "vsd": {
        "score": "vsd",
        "preference": "none",
        "guidance.scale": 7.5,
        "guidance.weighting": "sds",
        "guidance.anneal": (5000 / 25_000, 5000 / 25_000),
        "guidance.view_limits": (30, 60),
        "vsd.lr": 1e-4,
        "vsd.betas": (0.9, 0.99),
        "vsd.eps": 1e-15,
        "vsd.start": "normal",
        "vsd.weight_decay": 0.01,
        "vsd.camera_dropout": 0.1,
        "vsd.prompt": "plain",
        **DREAMGAUSSIAN,
    },
    "sdi": {
        "score": "sdi",
        "preference": "none",
        "steps": 5000,
        "sdi.steps": 10,
        "sdi.tau": 1 / 30,
        "sdi.entropy": 0.3,
        "sdi.entropy_at": "end",
        "sdi.renoise": True,
        "sdi.scale": None,  # minus guidance.scale
        "guidance.scale": 7.5,
        "guidance.weighting": "sigma",
        "guidance.times": "annealed",
        "guidance.t_max.0": 0.98,
        "guidance.t_min": 0.2,
        "guidance.perp_neg": True,
        **LUCIDDREAMER,
    },
    "rewardsds-fast": {
        "score": "sds",
        "preference": "weighted",
        "weighted.candidates": 4,
        "weighted.lookahead": 1,
        "weighted.start": 0,
        "weighted.stop": 0.5,
        "guidance.scale": 100,
        **BEST_AND_WORST,
        **DREAMGAUSSIAN,
        **LINEAR,
    },
    "rewardsds-paper": {
        "score": "sds",
        "preference": "weighted",
        "weighted.candidates": 10,
        "weighted.lookahead": 15,
        "weighted.levels": "code",
        "weighted.start": 0,
        "weighted.stop": 1,
        "guidance.scale": 100,
        **BEST_AND_WORST,
        **DREAMGAUSSIAN,
        **LINEAR,
    },
    "rewardsds-mv": {
        "score": "sds",
        "preference": "weighted",
        "weighted.candidates": 7,
        "weighted.lookahead": 15,
        "weighted.levels": "code",
        "weighted.start": 0,
        "weighted.stop": 0.5,
        "guidance.scale": 100,
        "guidance.weighting": "uniform",
        **BEST_AND_WORST,
        **DREAMGAUSSIAN,
        **LINEAR,
        "views.count": 4,
    },
    "rewardvsd": {
        "score": "vsd",
        "preference": "weighted",
        "weighted.candidates": 10,
        "weighted.lookahead": 15,
        "weighted.levels": "code",
        "weighted.start": 0,
        "weighted.stop": 1,
        "guidance.scale": 7.5,
        "vsd.lr": 3e-4,
        "vsd.weight_decay": 0,
        **BEST_AND_WORST,
        **DREAMGAUSSIAN,
        **LINEAR,
    },
    "mvdream": {"score": "sds", "preference": "none", **MVDREAM, **RECONSTRUCTION},
    "dreamdpo": {
        "score": "sds",
        "preference": "dpo",
        "dpo.gap": 0.01,
        "dpo.form": "paper",
        "guidance.scale": 7.5,
        "guidance.rescale": 0,
        "guidance.weighting": "sds",
        **MVDREAM,
    },
    "dreamreward": {
        "score": "sds",
        "preference": "ascent",
        "ascent.form": "code",
        "ascent.weight": 0.6,
        "ascent.start": 6000 / 10_000,
        "ascent.target": 4,
        "ascent.straight_through": 0.1,
        "ascent.pure": 0,
        "reward_options.view_prompts": True,
        "guidance.view_limits": (30, 60),
        **MVDREAM,
        **RECONSTRUCTION,
    },
    "psd": {
        "score": "sds",
        "preference": "psd",
        "psd.rho": 1,
        "psd.temperature": 1,
        "psd.learn": True,
        "psd.lr": 1e-4,
        "psd.interval": 5,
        "psd.anneal": 0.1,
        "psd.t_limit": 1,  # none is published
        "guidance.scale": 1 + 7.5,
        **MVDREAM,
    },
}
READY = ("sd15-fast", "sd21-quality", "rewardsds-sd", "psd-mvdream", "mvdream")
MINIATURE = {
    "prompt": "a red cube",
    "prior": "toybox-mini",
    "reward": ["toybox-mini"],
    "negative": "",
    "steps": 3,
    "views": {"size": [16]},
    "splats": {"count": 40},
}


def preset(name: str) -> Config:
    return from_dict(read_preset(name))


def at(config: Any, path: str) -> Any:
    """config's value at "group.field" or "group.field.index"."""
    for part in path.split("."):
        config = config[int(part)] if part.isdigit() else getattr(config, part)
    return config


def header(name: str) -> str:
    """The comments that a preset begins with, as one text."""
    lines = presets()[name].read_text(encoding="utf-8").splitlines()
    first = next(n for n, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#") for line in lines[:first])


def suggested(name: str) -> list[str]:
    """The words of the command line in a preset's header."""
    text = header(name).replace("\\\n", " ")
    found = re.search(r"splatgen generate (.+)", text)
    assert found, f"{name}: the header has no command line for the toybox"
    return shlex.split(found.group(1))


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_begins_with_what_it_is(name: str) -> None:
    first = presets()[name].read_text(encoding="utf-8").splitlines()[0]
    assert re.match(r"# \w.* \w", first), first


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_leaves_prompt_seed_and_device_to_the_user(name: str) -> None:
    assert not {"prompt", "seed", "device"} & set(read_preset(name))
    validate(preset(name))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_setting_keeps_its_numbers(name: str) -> None:
    config = preset(name)
    for path, value in PUBLISHED[name].items():
        found = at(config, path)
        if isinstance(value, str | bool | None) or found is None:
            assert found == value, path
        else:
            assert found == pytest.approx(value, rel=2e-3 if path == "views.fov" else 1e-4), path


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_setting_names_its_source_and_prior_and_leaves_the_prior_open(name: str) -> None:
    text = header(name)
    assert re.search(r"\barXiv \d{4}\.\d{5}\b", text)
    assert re.search(r"Stable Diffusion|MVDream", text)
    assert "toybox" in text
    assert name == "mvdream" or re.search(r"--prior (sd21|mvdream|sd3)\b", text)
    assert ("prior" in read_preset(name)) == (name == "mvdream")  # which is that prior's own setting
    assert "reward" not in read_preset(name)
    assert ("negative" in read_preset(name)) == (name == "mvdream")


@pytest.mark.parametrize("name", sorted(READY))
def test_a_preset_that_is_ready_to_run_names_its_models_and_how_to_get_them(name: str) -> None:
    table, config = read_preset(name), preset(name)
    assert "prior" in table
    assert config.budget != "none"
    assert list(config.views.size) == sorted(config.views.size)
    assert len(set(config.views.size)) > 1
    assert (config.preference == "none") or config.rewards()
    needed = {config.prior, *config.rewards()}
    assert needed <= set(PUBLISHED_WEIGHTS)
    assert all(not JUDGES[reward].embedded for reward in config.rewards())
    fetch = next(line.split()[2:] for line in header(name).splitlines() if "splatgen fetch" in line)
    assert {word.strip("`).") for word in fetch[:2]} >= needed or name == "mvdream"
    assert config.views.count % PRIORS[config.prior].views == 0


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_command_in_a_header_works_and_brings_the_scale_down(name: str) -> None:
    words = suggested(name)
    options, config = read(words)
    assert options.preset == name
    assert config.guidance.scale == 1.5
    assert config.views.size == (64,)
    assert config.weighted.scale in (None, 1.5)
    assert config.steps <= 500


def test_the_hosts_of_presets_that_are_compared_are_the_same() -> None:
    """Splats, rates and growth are DreamGaussian's in all presets but those that name another host."""
    others = {"sdi", "ism", "threestudio-3dgs"}
    reference = preset("sds")
    for name in set(PUBLISHED) - others:
        config = preset(name)
        for group in ("splats", "lr", "densify", "regularise", "output"):
            assert getattr(config, group) == getattr(reference, group), (name, group)
    for name in ("rewardsds-fast", "rewardsds-paper"):
        config = preset(name)
        assert (config.guidance, config.views) == (reference.guidance, reference.views), name


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_runs_on_the_miniature(name: str) -> None:
    config = validate(merge(preset(name), MINIATURE))
    models = load_models(config, "cpu")
    scene = new_scene(config, starting_splats(config), "cpu")
    start = {key: p.detach().clone() for key, p in scene.params.items()}
    for step in range(3):
        scene.step = step
        seen = advance(config, models, scene)
        assert not seen.failed
        assert torch.isfinite(seen.loss)
        assert seen.model_calls > 0
    assert all(bool(torch.isfinite(p).all()) for p in scene.params.values())
    assert not torch.equal(scene.params["sh0"][: len(start["sh0"])], start["sh0"])


def test_presets_change_something_and_differ() -> None:
    configs = {name: to_dict(preset(name)) for name in PUBLISHED}
    unique = {repr(values) for values in [*configs.values(), to_dict(Config())]}
    assert len(unique) == len(configs) + 1


def test_the_page_on_methods_has_every_score_preference_and_preset() -> None:
    text = METHODS_PAGE.read_text(encoding="utf-8")
    hints = typing.get_type_hints(Method)
    names = (*typing.get_args(hints["score"]), *typing.get_args(hints["preference"]), *PUBLISHED, *READY)
    for name in names:
        assert re.search(rf"`(--score |--preference )?{name}`", text), name


def test_mvdreams_negative_names_the_usual_flaws_in_words_of_our_own() -> None:
    words = preset("mvdream").negative.split(", ")
    assert len(words) >= 6
    assert {"ugly", "blurry"} <= set(words)
    assert "pixelated obscure" not in preset("mvdream").negative
