"""Steps of small runs on the GPU, with models that are made once."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import tiny_clip
import tiny_diffusion
import tiny_mvdream
import tiny_t5

from splatgen.config import Config, PriorOptions, from_dict
from splatgen.loop.initial_splats import starting_splats
from splatgen.loop.step import Models, StepResult, advance, assemble
from splatgen.models.budget import LoadOptions
from splatgen.priors import Prior, load_options_for, load_prior
from splatgen.rewards import Reward, load_reward
from splatgen.rewards.ensemble import RewardEnsemble
from splatgen.scene.parameters import Scene, new_scene

VIEWS = {"mvdream": 4}
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "weighted": {"weighted": {"candidates": 2, "lookahead": 1, "stop": 1.0}},
    "dpo": {},
    "psd": {"psd": {"interval": 1, "t_limit": 1.0}},
    "ascent": {"ascent": {"start": 0.0, "straight_through": 1.0}},
}


@functools.cache
def weights() -> Path:
    """A folder of tiny published models."""
    folder = Path(tempfile.mkdtemp(prefix="splatgen-tiny-"))
    for name in ("sd15", "sd21", "sdxl"):
        tiny_diffusion.write_folder(folder / name, name)
    tiny_mvdream.save(tiny_mvdream.published(), folder / "mvdream")
    tiny_t5.sd3(folder / "sd3")
    tiny_t5.sd3(folder / "sd35", version="3.5", t5=False)
    tiny_t5.deepfloyd(folder / "deepfloyd")
    tiny_clip.write_hpsv2(folder)
    return folder


def config(prior: str = "toybox-mini", score: str = "sds", preference: str = "none", **more: Any) -> Config:
    published = not prior.startswith("toybox")
    return from_dict(
        {
            "prompt": "a red cube",
            "prior": prior,
            "reward": ["hpsv2" if published else "toybox-mini"],
            "weights": str(weights()) if published else None,
            "prior_options": {"t5": False} if prior == "sd35" else {},
            "device": "cuda",
            "steps": 100,
            "score": score,
            "preference": preference,
            "guidance": {"scale": 7.5, "t_min": 0.3, "t_max": [0.35, 0.35]},
            "views": {"count": VIEWS.get(prior, 2), "size": [16]},
            "splats": {"count": 30},
            "densify": {"rounds": 1, "start": 0.0, "stop": 0.5},
            "output": {"frames": 0, "size": 16, "checkpoint_seconds": 0},
            **METHODS[preference],
            **more,
        }
    )


@functools.lru_cache(maxsize=1)
def prior(name: str, options: PriorOptions, how: LoadOptions) -> Prior:
    return load_prior(name, options, how)


@functools.lru_cache(maxsize=2)
def reward(name: str, how: LoadOptions) -> Reward:
    return load_reward(name, how)


def start(given: Config) -> tuple[Models, Scene]:
    """A run before its first step."""
    how = load_options_for(given, "cuda")
    names = given.rewards()
    ensemble = RewardEnsemble(
        rewards=tuple(reward(name, how) for name in names),
        weights=tuple(names.values()),
        options=given.reward_options,
    )
    models = assemble(given, prior(given.prior, given.prior_options, how), ensemble, ())
    return models, new_scene(given, starting_splats(given), "cuda")


def step(given: Config, models: Models, scene: Scene) -> StepResult:
    seen = advance(given, models, scene)
    scene.step += 1
    return seen
