"""The settings of a run: frozen dataclasses, read from strict TOML or JSON. No torch here.

Every schedule is a fraction of the run in 0..1, so that `--steps` rescales them all.
Precedence: these defaults < preset < config file < command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from tyro.conf import Positional, arg

from splatgen.hints import did_you_mean


@dataclass(frozen=True, kw_only=True)
class PriorOptions:
    """Which diffusion model guides, and how."""

    model: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Weights to use instead of the packaged ones: a folder that holds NAME.safetensors and NAME.json."""
    camera: bool = True
    """Tell a camera-aware prior the exact viewing direction, not only the view word."""


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """Classifier-free guidance, times and weights."""

    scale: float = 1.5
    """Guidance scale w in e_n + w (e_y - e_n); 1 is the plain conditional prediction."""
    rescale: float = 0.0
    """Pull the estimate's spread back toward the conditional one's, 0 to 1 (Lin et al. 2023)."""
    clamp: bool = True
    """Clamp the one-step estimate to the image range (pixel priors only)."""
    t_min: float = 0.1
    """Smallest diffusion time."""
    t_max: tuple[float, float] = (0.98, 0.50)
    """Largest diffusion time at the start and at the end of the annealing."""
    anneal: tuple[float, float] = (0.0, 0.8)
    """Fractions of the run between which the largest time falls."""
    weighting: Literal["sds", "uniform", "sigma", "fantasia3d"] = "uniform"
    """w(t): sigma^2 (sds), 1, sigma/alpha, or alpha sigma^2."""


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """Cameras and backgrounds of the optimisation."""

    count: int = 4
    """Views a step; their azimuths are stratified."""
    size: tuple[int, ...] = (64,)
    """Render sizes in pixels; the run is divided evenly among them."""
    elevation: tuple[float, float] = (-15.0, 60.0)
    """Degrees."""
    distance: tuple[float, float] = (2.5, 2.5)
    """World units."""
    fov: tuple[float, float] = (50.0, 50.0)
    """Vertical field of view, degrees."""
    background: Literal["random", "white", "black", "grey"] = "random"
    """What is behind the splats while they are optimised."""


@dataclass(frozen=True, kw_only=True)
class SplatOptions:
    """The cloud at the start."""

    count: int = 1500
    """Splats at the start."""
    radius: float = 0.6
    """Radius of the ball they fill, world units."""
    scale: float = 0.07
    """Standard deviation of each, world units."""
    opacity: float = 0.25
    """Of each, 0 to 1."""
    sh_degree: int = 0
    """Degree of the spherical harmonics, 0 to 3."""


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """Adam's learning rates by parameter group."""

    means: float = 0.006
    scales: float = 0.02
    quats: float = 0.01
    opacities: float = 0.05
    sh: float = 0.06
    """Of the degree-0 colour; higher degrees get a twentieth."""
    decay_from: float = 0.5
    """Fraction of the run from which the rates fall."""
    final: float = 0.1
    """Share of the rates left at the end."""


@dataclass(frozen=True, kw_only=True)
class DensifyOptions:
    """Splitting, cloning and pruning (gsplat's DefaultStrategy)."""

    start: float = 0.2
    stop: float = 0.7
    """Fractions of the run between which the cloud is refined; start = stop turns it off."""
    rounds: int = 5
    """How many times."""
    grow: float = 0.1
    """Share of the visible splats, those with the largest screen-space gradients, that grow in a round. A
    share, not a threshold: it does not depend on the scale of the guidance gradient."""
    split_scale: float = 0.04
    """Splats larger than this (world units) are split, smaller ones cloned."""
    prune_opacity: float = 0.02
    prune_scale: float = 0.5
    """Splats larger than this (world units) are removed."""
    max_splats: int = 20_000
    """Hard cap."""
    reset: tuple[float, ...] = ()
    """Fractions of the run at which opacities are reset to twice prune_opacity."""


@dataclass(frozen=True, kw_only=True)
class RegulariseOptions:
    """Penalties on the splats, added to the guidance gradient."""

    radius: float = 10.0
    """On centres beyond `max_radius`."""
    max_radius: float = 1.0
    scale: float = 0.0
    """On the mean scale."""
    aspect: float = 0.1
    """On axes longer than `max_aspect` times the shortest but one."""
    max_aspect: float = 4.0
    opacity: float = 0.0
    """On the mean opacity: thins floaters."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written at the end."""

    frames: int = 120
    """Turntable frames; 0 writes none."""
    size: int = 256
    """Side of the turntable and preview pictures in pixels."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints; 0 writes none but the last."""
    log_every: int = 1
    """Steps between rows of metrics.jsonl."""
    reward_every: int = 10
    """Steps between reward scores of the current render."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run depends on but its output folder."""

    prompt: Annotated[str, Positional, arg(metavar="PROMPT", help_behavior_hint="")] = ""
    """What to make, in one line of at most 2,000 characters."""
    negative: Annotated[str, arg(metavar="TEXT", help_behavior_hint="")] = ""
    """What to keep away from."""
    steps: Annotated[int, arg(metavar="N")] = 400
    """Optimisation steps; every schedule scales with them."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """The same seed gives the same cameras, times and noises."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is one."""
    prior: Annotated[str, arg(metavar="NAME")] = "toybox"
    """The diffusion model that guides: toybox or toybox-mini, the embedded ones."""
    score: Literal["sds"] = "sds"
    """Where the noise of a step comes from, and what is subtracted from the prediction."""
    preference: Literal["none"] = "none"
    """How the candidate noises of a step are merged."""
    reward: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ("toybox",)
    """Rewards that score the renders, after the prompt: one or more, or no name to turn scoring off."""
    prior_options: Annotated[PriorOptions, arg(name="prior")] = field(default_factory=PriorOptions)
    guidance: GuidanceOptions = field(default_factory=GuidanceOptions)
    views: ViewOptions = field(default_factory=ViewOptions)
    splats: SplatOptions = field(default_factory=SplatOptions)
    lr: LearningOptions = field(default_factory=LearningOptions)
    densify: DensifyOptions = field(default_factory=DensifyOptions)
    regularise: RegulariseOptions = field(default_factory=RegulariseOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


class ConfigError(ValueError):
    """A setting that cannot be used; the message names it, its value and what would do."""


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dictionaries, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # type: ignore[no-any-return]


def merge(config: Any, changes: Mapping[str, Any], where: str = "") -> Any:
    """A copy of a config with nested changes; unknown keys and wrong types raise ConfigError."""
    known = {f.name: f for f in fields(config)}
    hints = typing.get_type_hints(type(config))
    values = {}
    for key, value in changes.items():
        name = f"{where}{key}"
        if key not in known:
            close = difflib.get_close_matches(key, list(known), n=1)
            hint = f"; did you mean {where}{close[0]!s}?" if close else f"; known here: {', '.join(known)}"
            raise ConfigError(f"unknown setting {name}{hint}")
        current = getattr(config, key)
        if is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name} is a group of settings, got {value!r}: write it as a table")
            values[key] = merge(current, value, f"{name}.")
        elif isinstance(value, Mapping) and f"{key}_options" in known:
            raise ConfigError(f"{name} is a name, not a table: its settings go into the table {name}_options")
        else:
            values[key] = convert(value, hints[key], name)
    return dataclasses.replace(config, **values)


def convert(value: Any, hint: Any, name: str) -> Any:
    """A TOML or JSON value as the annotated type; no silent coercion but int to float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{name} is {value!r}: choose one of {', '.join(map(str, args))}")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return convert(value, next(a for a in args if a is not type(None)), name)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name} is {value!r}: write a list")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise ConfigError(f"{name} has {len(value)} entries: it takes {len(args)}")
        return tuple(convert(v, args[0], name) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{name} is {value!r}: it takes {hint.__name__}")
    return value


def from_dict(values: Mapping[str, Any]) -> Config:
    """A Config from nested dictionaries; unknown keys are errors."""
    return merge(Config(), values)  # type: ignore[no-any-return]


def read_file(path: Path) -> dict[str, Any]:
    """The table in a .toml or .json file; ConfigError when it is not one."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text: give a .toml or .json file") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid {path.suffix[1:] or 'TOML'}: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{path} holds a {type(table).__name__}: write a table of settings")
    return table


def presets() -> dict[str, Path]:
    """Name to file of every preset that is installed."""
    import importlib.resources

    folder = Path(str(importlib.resources.files("splatgen_configs")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_preset(name: str) -> dict[str, Any]:
    """A preset's table by name; ConfigError with the nearest name when there is none."""
    known = presets()
    if name not in known:
        raise ConfigError(f"no preset {name[:60]!r}; {did_you_mean(name, known)}")
    return read_file(known[name])
