"""Which settings can be used together, and what to say when they cannot. No torch here."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, is_dataclass

from splatgen.config import (
    Config,
    ConfigError,
    DensifyOptions,
    GuidanceOptions,
    OutputOptions,
    SplatOptions,
    ViewOptions,
)


def _check(condition: bool, name: str, value: object, advice: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {value!r}: {advice}")


def _check_range(pair: tuple[float, ...], name: str, low: float, high: float) -> None:
    ok = all(math.isfinite(v) and low <= v <= high for v in pair) and list(pair) == sorted(pair)
    _check(ok, name, pair, f"give two numbers from {low:g} to {high:g}, the smaller first")


def _check_finite(config: Config) -> None:
    for prefix, group in (("", config), *((f"{f.name}.", getattr(config, f.name)) for f in fields(config))):
        if is_dataclass(group):
            for f in fields(group):
                value = getattr(group, f.name)
                numbers = value if isinstance(value, tuple) else (value,)
                bad = any(isinstance(v, float) and not math.isfinite(v) for v in numbers)
                _check(not bad, f"{prefix}{f.name}", value, "give a finite number")


def _check_guidance(g: GuidanceOptions) -> None:
    _check(g.scale >= 0, "guidance.scale", g.scale, "give 0 or more")
    _check(0 <= g.rescale <= 1, "guidance.rescale", g.rescale, "give 0 to 1")
    _check(0 < g.t_min < min(g.t_max), "guidance.t_min", g.t_min, "give more than 0 and less than t_max")
    _check(max(g.t_max) < 1, "guidance.t_max", g.t_max, "give less than 1")
    _check_range(g.anneal, "guidance.anneal", 0, 1)


def _check_views(v: ViewOptions) -> None:
    _check(1 <= v.count <= 64, "views.count", v.count, "give 1 to 64")
    sizes = len(v.size) > 0 and all(8 <= s <= 2048 for s in v.size)
    _check(sizes, "views.size", v.size, "give sizes from 8 to 2048")
    _check_range(v.elevation, "views.elevation", -90, 90)
    _check_range(v.distance, "views.distance", 0.1, 100)
    _check_range(v.fov, "views.fov", 1, 170)


def _check_splats(s: SplatOptions, d: DensifyOptions) -> None:
    _check(1 <= d.max_splats <= 10_000_000, "densify.max_splats", d.max_splats, "give 1 to 10,000,000")
    _check(1 <= s.count <= d.max_splats, "splats.count", s.count, "give 1 up to densify.max_splats")
    _check(s.radius > 0 and s.scale > 0, "splats.radius and .scale", (s.radius, s.scale), "give more than 0")
    _check(0 < s.opacity < 1, "splats.opacity", s.opacity, "give more than 0 and less than 1")
    _check(s.sh_degree in (0, 1, 2, 3), "splats.sh_degree", s.sh_degree, "give 0 to 3")
    _check_range((d.start, d.stop), "densify.start, densify.stop", 0, 1)
    _check(0 <= d.grow <= 1, "densify.grow", d.grow, "give a share from 0 to 1")
    _check(d.rounds >= 0, "densify.rounds", d.rounds, "give 0 or more")
    _check(0 <= d.prune_opacity < 0.5, "densify.prune_opacity", d.prune_opacity, "give 0 to less than 0.5")
    _check(d.split_scale > 0, "densify.split_scale", d.split_scale, "give more than 0")
    _check(d.prune_scale > 0, "densify.prune_scale", d.prune_scale, "give more than 0")
    resets = all(0 <= fraction <= 1 for fraction in d.reset)
    _check(resets, "densify.reset", d.reset, "give fractions of the run, 0 to 1")


def _check_output(o: OutputOptions) -> None:
    _check(0 <= o.frames <= 2000, "output.frames", o.frames, "give 0 to 2000")
    _check(16 <= o.size <= 2048, "output.size", o.size, "give 16 to 2048")
    _check(o.checkpoint_seconds >= 0, "output.checkpoint_seconds", o.checkpoint_seconds, "give 0 or more")
    _check(o.log_every >= 1, "output.log_every", o.log_every, "give at least 1")
    _check(o.reward_every >= 1, "output.reward_every", o.reward_every, "give at least 1")


def validate(config: Config) -> Config:
    """Return the config, or raise ConfigError naming the first setting that cannot be used."""
    _check_finite(config)
    _check(1 <= config.steps <= 10_000_000, "steps", config.steps, "give at least 1")
    _check(0 <= config.seed < 2**63, "seed", config.seed, "give a number from 0 to 2^63 - 1")
    _check_guidance(config.guidance)
    _check_views(config.views)
    _check_splats(config.splats, config.densify)
    for name, rate in asdict(config.lr).items():
        limit = 1 if name in ("decay_from", "final") else 1000
        _check(0 <= rate <= limit, f"lr.{name}", rate, f"give 0 to {limit}")
    r = config.regularise
    for name, value in asdict(r).items():
        _check(value >= 0, f"regularise.{name}", value, "give 0 or more")
    _check(r.max_aspect >= 1, "regularise.max_aspect", r.max_aspect, "give 1 or more")
    _check_output(config.output)
    return config
