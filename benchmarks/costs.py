"""What steps with full-size models cost: each function here makes one row of `benchmarks/models.py`.

Shapes: B views.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import random_models
import torch
from measuring import Call, Device, NotMeasured, again, medians, recorded, timed
from naive_step import NaiveStep, written_naively
from torch import Tensor
from torch.nn.functional import cosine_similarity

from splatgen.config import Config, RewardOptions, from_dict
from splatgen.loop.initial_splats import starting_splats
from splatgen.loop.out_of_memory import lighter, within_memory
from splatgen.loop.step import Models, StepResult, advance, assemble
from splatgen.models.budget import LoadOptions
from splatgen.models.memory import is_out_of_memory
from splatgen.priors import load_options_for
from splatgen.rewards.ensemble import RewardEnsemble
from splatgen.scene.parameters import Scene, new_scene

PROMPT = "a corgi wearing a top hat"
TIME = 0.5  # of every view: half of a look-ahead, and low enough for psd to learn
SAME = 1e-3  # of G in float32: the largest difference, in units of its root mean square
SETTINGS = {  # prior, views
    "sd15x4": ("sd15", 4),
    "mvdreamx4": ("mvdream", 4),
    "sd15x1": ("sd15", 1),
    "sdxlx1": ("sdxl", 1),
}
_WEIGHTED = {"candidates": 4, "lookahead": 1, "stop": 1.0}
METHODS: dict[str, dict[str, Any]] = {
    "sds": {"preference": "none"},
    "weighted-4": {"preference": "weighted", "weighted": _WEIGHTED},
    "weighted-8x15": {
        "preference": "weighted",
        "weighted": {**_WEIGHTED, "candidates": 8, "lookahead": 15},
    },
    "psd": {"preference": "psd", "psd": {"interval": 5}},
    "psd-every": {"preference": "psd", "psd": {"interval": 1}},  # the negative learns at every step
}
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row."""

    section: str
    setting: str
    method: str
    budget: str = "none"
    gigabytes: float | None = None  # of a limit
    target: str | None = None  # what the row decides

    def named(self) -> Row:
        prior, views = SETTINGS[self.setting]
        found = dataclasses.asdict(self) | {"prior": prior, "views": views}
        return {name: value for name, value in found.items() if value is not None and name != "setting"}


@dataclass(kw_only=True)
class Bench:
    """A device, and the networks that are on it."""

    device: Device
    tiny: bool = False
    rounds: int = 5
    _parts: random_models.Networks | None = None
    _tower: Any = None  # of the reward
    _kept: tuple[str, bool, bool] | None = None  # prior, whether networks take turns, in what precision

    @property
    def sizes(self) -> dict[str, random_models.Sizes]:
        return random_models.TINY if self.tiny else random_models.FULL

    def config(self, job: Job) -> Config:
        """A run's settings: as published sizes ask, in 512 or 256 pixels, of 20,000 splats."""
        prior, views = SETTINGS[job.setting]
        return from_dict(
            {
                "prompt": PROMPT,
                "prior": prior,
                "budget": job.budget,
                "steps": 1000,
                "guidance": {"scale": 7.5, "weighting": "sds", "t_min": TIME, "t_max": [TIME, TIME]},
                "views": {"count": views, "size": [self.sizes[prior].side]},
                "splats": {"count": 60 if self.tiny else 20_000, "scale": 0.1 if self.tiny else 0.02},
                "densify": {"rounds": 0},
                **METHODS[job.method],
            }
        )

    def load_options(self, config: Config) -> LoadOptions:
        return load_options_for(config, self.device.name)

    def networks(self, config: Config) -> random_models.Networks:
        """Made once for all jobs of a prior that keep them alike; compiled ones are made by themselves."""
        how = self.load_options(config)
        kept = (config.prior, how.paged, how.rough)
        if self._parts is None or self._kept != kept:
            self._tower = None
            self.forget()
            self._kept = kept
            self._parts = random_models.networks(
                config.prior, self.sizes[config.prior], self.load_options(config)
            )
        return self._parts

    def forget(self) -> None:
        self._parts = None
        self.device.reset()

    def start(self, config: Config, parts: random_models.Networks | None = None) -> Run:
        """A run before its first step; the device's peaks begin here."""
        how = self.load_options(config)
        parts = parts or self.networks(config)
        sizes = random_models.TINY_HPSV2 if self.tiny else random_models.HPSV2
        self._tower = self._tower or random_models.image_tower(sizes, how)
        self.device.reset()
        reward = random_models.reward(self._tower, sizes, how)
        ensemble = RewardEnsemble(rewards=(reward,), weights=(1.0,), options=RewardOptions())
        prior: Any = random_models.prior(parts, how)
        models = assemble(config, prior, ensemble, ())
        scene = new_scene(config, starting_splats(config), self.device.name)
        return Run(config=config, models=models, scene=scene, device=self.device)


@dataclass(kw_only=True)
class Run:
    """Steps of one config; a window of them holds everything that happens every few steps."""

    config: Config
    models: Models
    scene: Scene
    device: Device
    seen: list[StepResult] = field(default_factory=list)  # of the last window

    @property
    def length(self) -> int:
        return self.config.psd.interval if self.config.preference == "psd" else 1

    def window(self) -> None:
        self.seen = [self.step(n) for n in range(self.length)]

    def step(self, n: int = 0) -> StepResult:
        self.scene.step = n
        return advance(self.config, self.models, self.scene)

    def networks(self) -> dict[str, torch.nn.Module]:
        prior: Any = self.models.prior  # the protocols say nothing of what is inside
        reward: Any = self.models.ensemble.rewards[0]
        vae = prior.vae
        return {
            "unet": prior.unet,
            "encode": vae.encoder,
            "decode": vae.decoder,
            "reward": reward.image_tower,
        }


def images(config: Config, step: int = 0) -> int:
    """Images through the denoiser in a step, by the formulas: a prediction is two of every view."""
    views, kind = config.views.count, config.preference
    if kind == "none":
        return 2 * views
    if kind == "weighted":
        steps = config.weighted.lookahead
        levels = 1 + sum(0 < n / steps < TIME for n in range(steps))
        return 2 * views * config.weighted.candidates * levels
    learns = config.psd.learn and step % config.psd.interval == 0 and config.psd.t_limit >= TIME
    return 2 * views * 2 + views * learns


def measure_steps(bench: Bench, job: Job) -> Row:
    config = bench.config(job)
    run = bench.start(config)
    run.window()  # the first one also warms up
    run.window()
    row = peaks(bench.device)
    with recorded(run.networks()) as calls:
        run.window()
    row |= counted(run, calls)
    with contextlib.suppress(NotMeasured):
        row["waits"] = bench.device.waits(run.window)
    kinds = {what: again(calls, what) for what in run.networks()}
    found = medians(bench.device, {"step": run.window, **kinds}, rounds=bench.rounds)
    per_step = {name: 1e3 * seconds / run.length for name, seconds in found.items()}
    step, bare = per_step.pop("step"), sum(per_step.values())
    return row | {
        "step_ms": step,
        "stages_ms": stages(run, bench.rounds),
        "networks_ms": per_step,
        "ratio": step / bare,
        "ratio_without_encoder": step / (bare - per_step["encode"]),
    }


def counted(run: Run, calls: Sequence[Call]) -> Row:
    """Images a step through each network, and the sizes of the UNet's batches.

    Raises RuntimeError where they are not what the formulas say.
    """
    sums = {what: sum(call.images for call in calls if call.what == what) for what in run.networks()}
    said = sum(seen.model_calls for seen in run.seen)
    wanted = sum(images(run.config, n) for n in range(run.length))
    if not sums["unet"] == said == wanted:
        raise RuntimeError(
            f"{sums['unet']} images went through the UNet, {said} were reported, the formulas say {wanted}"
        )
    return {
        "images": {what: count / run.length for what, count in sums.items()},
        "batches": [call.images for call in calls if call.what == "unet"],
    }


def stages(run: Run, rounds: int) -> dict[str, float]:
    """Median milliseconds of every stage, a mean over the window."""
    kept = []
    for _ in range(min(rounds, 3)):
        run.window()
        kept.append(run.seen)
    return {
        name: statistics.median(statistics.mean(seen.ms[name] for seen in window) for window in kept)
        for name in run.seen[0].ms
    }


def peaks(device: Device) -> Row:
    try:
        allocated, reserved = device.peaks()
    except NotMeasured as reason:
        return {"peak_gb": f"not measured: {reason}"}
    return {"peak_gb": allocated, "reserved_gb": reserved}


def measure_limit(bench: Bench, job: Job) -> Row:
    """Whether two steps pass, models and all, where torch can have no more than so much."""
    assert job.gigabytes is not None
    config = bench.config(job)
    bench.start(config)  # networks are made outside: only what a run keeps is to count
    with bench.device.limited(job.gigabytes):
        try:
            run = bench.start(config)
            whole = not any(float(run.step(n).failed) for n in range(2))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return {"fits": False}
        return {"fits": whole} | peaks(bench.device)


def measure_halving(bench: Bench, job: Job) -> Row:
    """Memory for less than a whole step and more than one of half the batches."""
    config = bench.config(job)
    full = reserved(bench, config, halved=False)
    half = reserved(bench, config, halved=True)
    limit = (full + half) / 2
    run = bench.start(config)
    with bench.device.limited(limit):
        seen, models = within_memory(
            lambda models: advance(config, models, run.scene), run.models, run.scene.clear
        )
        again = advance(config, models, run.scene)
    passed = models.halved and not float(seen.failed) and not float(again.failed)
    return {"full_gb": full, "half_gb": half, "limit_gb": limit, "halved": models.halved, "fits": passed}


def reserved(bench: Bench, config: Config, *, halved: bool) -> float:
    """GB that torch takes for two steps."""
    run = bench.start(config)
    if halved:
        run.step()  # halves what was asked for so far
        run.models = lighter(run.models) or run.models
        run.scene.clear()
        bench.device.reset()
    run.step()
    run.step()
    return bench.device.peaks()[1]


def measure_naive(bench: Bench, job: Job) -> Row:
    """Ours and the naive step on the same networks, in turns, from the same scene.

    Raises RuntimeError where G differs in float32; in half precision a difference may turn a ranking.
    """
    config = bench.config(job)
    ours, theirs = bench.start(config), bench.start(config)
    spent: tuple[Any, ...] = (ours.models.prior, *ours.models.rewards, theirs.models.prior)
    for part in spent:
        part.release()  # text encoders once are enough, and the naive prior's is below
    naive, prior = NaiveStep(config, theirs.models), theirs.models.prior
    how = dataclasses.replace(bench.load_options(config), precision="float32")
    spare = random_models.text_encoder(bench.sizes[config.prior], how)  # stays, as in most codes

    def window() -> None:
        for n in range(theirs.length):
            theirs.scene.step = n
            naive(theirs.scene)

    taken = ours.step().found
    assert taken is not None  # no step of it fits pictures
    mine = taken.value
    with written_naively(prior):
        value = naive(theirs.scene)
        row = agreement(mine, value, ours, naive) | {"images": naive.images}
        bench.device.reset()
        window()
        row |= {f"naive_{name}": value for name, value in peaks(bench.device).items()}
    del spare
    if bench.load_options(config).precision == "float32" and row["difference"] > SAME:
        raise RuntimeError(f"the two steps differ by {row['difference']:.1e} of G: one of them is wrong")
    ours.window()
    times: dict[str, list[float]] = {"step_ms": [], "naive_ms": []}
    for _ in range(min(bench.rounds, 3)):
        times["step_ms"].append(1e3 * timed(bench.device, ours.window) / ours.length)
        with written_naively(prior):
            times["naive_ms"].append(1e3 * timed(bench.device, window) / ours.length)
    found = {name: statistics.median(values) for name, values in times.items()}
    return row | found | {"ratio": found["naive_ms"] / found["step_ms"]}


def agreement(mine: Tensor, value: Tensor, ours: Run, naive: NaiveStep) -> Row:
    """How far G [B, C, h, w] is from ours, and which way the learned negatives went."""
    row = {"difference": float((mine - value).abs().max() / value.square().mean().sqrt())}
    if ours.config.preference == "psd":
        learned = ours.models.preference.state_dict()["negative"]
        steps = [
            torch.cat([(found[name] - given).flatten() for name, given in ours.models.negative.items()])
            for found in (learned, naive.negative)
        ]
        row["negatives_cosine"] = float(cosine_similarity(steps[0], steps[1], dim=0))
    return row


def measure_compiled(bench: Bench, job: Job) -> Row:
    """With the UNet compiled; what the first steps take beyond what later ones do is the compiling."""
    config = bench.config(job)
    run = bench.start(config)
    run.window()
    plain = medians(bench.device, {"step": run.window}, rounds=bench.rounds)["step"] / run.length
    options = dataclasses.replace(config.prior_options, compile=True)
    config = dataclasses.replace(config, prior_options=options)
    parts = random_models.networks(config.prior, bench.sizes[config.prior], bench.load_options(config))
    run = bench.start(config, parts)
    try:
        first = sum(timed(bench.device, run.window) for _ in range(3))
        step = medians(bench.device, {"step": run.window}, rounds=bench.rounds)["step"] / run.length
    finally:
        torch.compiler.reset()
    spent, saved = first - 3 * run.length * step, plain - step
    return {
        "step_ms": 1e3 * plain,
        "compiled_ms": 1e3 * step,
        "ratio": plain / step,
        "compile_s": spent,
        "pays_after_steps": round(spent / saved) if saved > 0 else None,
    }


MEASURES: dict[str, Callable[[Bench, Job], Row]] = {
    "steps": measure_steps,
    "limits": measure_limit,
    "halving": measure_halving,
    "naive": measure_naive,
    "compile": measure_compiled,
}
