"""The settings of a run: frozen dataclasses, read from strict TOML or JSON. No torch here.

Every schedule is a fraction of the run in 0..1, so that `--steps` rescales them all.
Precedence: these defaults < preset < config file < command line.

Not here: anything that acts on a setting; nothing below knows of files but TOML and JSON.
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

from tyro.conf import Positional, Suppress, arg

from splatgen.config.hints import did_you_mean


@dataclass(frozen=True, kw_only=True)
class PriorOptions:
    """Which diffusion model guides, and how."""

    model: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")] = None
    """Weights to use instead of the usual ones: a folder, a single file, or an id in the Hugging Face cache.
    For the toybox, a folder that holds NAME.safetensors and NAME.json."""
    revision: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Branch, tag or commit of an id given as prior.model."""
    lora: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """A .safetensors file of LoRA weights to merge into the model."""
    lora_scale: float = 1.0
    """How much of the LoRA weights."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Of the networks; auto is half precision on CUDA and float32 on the CPU."""
    preview: Literal["full", "tiny"] = "full"
    """What decodes candidates for ranking: the model's own autoencoder, or the tiny one made for it."""
    compile: bool = False
    """Compile the denoiser with torch.compile: a minute or more at first, then faster steps."""
    t5: bool = True
    """Use the T5 text encoder of Stable Diffusion 3; without it, prompts are read by CLIP alone."""
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
    view_prompts: Literal["words", "blend", "none"] = "words"
    """How a view is told: front, side, back or overhead; a blend of neighbours by angle; or not at all."""
    perp_neg: bool = False
    """Steer away from neighbouring views, perpendicular to the prompt (Perp-Neg); takes blended views."""
    times: Literal["auto", "random", "annealed"] = "auto"
    """Stratified random times, or one for all views that falls from the first t_max to t_min over the run;
    auto is annealed for sdi, else random."""
    t_min: float = 0.1
    """Smallest diffusion time."""
    t_min_start: Annotated[float | None, arg(metavar="T", help_behavior_hint="")] = None
    """Smallest time at the start of the annealing, to fall to t_min; by default t_min all along."""
    t_max: tuple[float, float] = (0.98, 0.50)
    """Largest diffusion time at the start and at the end of the annealing."""
    anneal: tuple[float, float] = (0.0, 0.8)
    """Fractions of the run between which these fall (random times)."""
    weighting: Literal["auto", "sds", "uniform", "sigma", "fantasia3d"] = "auto"
    """w(t): sigma^2 (sds), 1, sigma/alpha, or alpha sigma^2; auto is sigma for sdi and ism, else uniform."""
    batch: Annotated[int, arg(metavar="N")] = 0
    """Most images through the denoiser at once, to fit memory; 0 takes all."""


@dataclass(frozen=True, kw_only=True)
class SDIOptions:
    """Inverted noise instead of a random one (score sdi)."""

    steps: Annotated[int, arg(metavar="N")] = 10
    """DDIM inversion steps for t = 1; a time t takes the whole part of N t, at least one."""
    scale: Annotated[float | None, arg(metavar="W", help_behavior_hint="")] = None
    """Guidance scale of the inversion; by default minus guidance.scale."""
    tau: float = 1 / 30
    """The inversion ends at t + U(0, tau)."""
    entropy: float = 0.3
    """Fresh noise added to the inverted one."""
    entropy_at: Literal["end", "steps"] = "end"
    """Add it once at the end (paper) or at each inversion step (official code)."""
    renoise: bool = True
    """Move the noise from t + tau to t (paper), or hand the latents of t + tau to the denoiser (code)."""


@dataclass(frozen=True, kw_only=True)
class VSDOptions:
    """The trained baseline (score vsd)."""

    rank: Annotated[int, arg(metavar="N")] = 4
    """Of the LoRA matrices."""
    lr: float = 3e-3
    """AdamW's rate for them; published is 1e-4, for tens of thousands of steps (docs/alignment.md)."""
    weight_decay: float = 0.0
    """AdamW's, for them."""
    camera: bool = True
    """Tell the LoRA model the camera."""
    camera_dropout: float = 0.1
    """Share of its training images without a camera."""
    prompt: Literal["view", "plain"] = "view"
    """Its prompt: as the frozen model reads it, or without the view's words (official code)."""


@dataclass(frozen=True, kw_only=True)
class ISMOptions:
    """Interval score matching (score ism)."""

    interval: float = 0.08
    """From s to t."""
    step: float = 0.2
    """Of the unconditional inversion up to s."""
    noise: float = 0.1
    """Added to the render before the inversion; what tells candidates apart."""


@dataclass(frozen=True, kw_only=True)
class WeightedOptions:
    """Candidate noises weighted by reward (preference weighted: RewardSDS, RewardVSD)."""

    candidates: Annotated[int, arg(metavar="N")] = 4
    """Noises an item."""
    lookahead: Annotated[int, arg(metavar="S")] = 1
    """DDIM steps of an estimate from t = 1 down; 1 is the one-step estimate."""
    scale: Annotated[float | None, arg(metavar="W", help_behavior_hint="")] = None
    """Guidance scale of the look-ahead; by default guidance.scale."""
    strategy: Literal["softmax", "best", "min-max"] = "min-max"
    """Weights by softmax of the rewards, the best alone, or the best ones less the worst ones."""
    top: Annotated[int, arg(metavar="N")] = 2
    """How many are best (best, min-max)."""
    bottom: Annotated[int, arg(metavar="N")] = 2
    """How many are worst (min-max)."""
    top_weight: float = 0.9
    """Of the best ones together."""
    bottom_weight: float = 0.1
    """Of the worst ones together, taken off."""
    temperature: float = 1.0
    """Of the softmax, in units of the reward."""
    normalise: Literal["mean", "paper"] = "mean"
    """Means over the best and the worst, free of N; or the paper's sum over N candidates divided by N."""
    start: float = 0.0
    stop: float = 0.5
    """Fractions of the run between which rewards weigh; one plain noise before and after."""


@dataclass(frozen=True, kw_only=True)
class DPOOptions:
    """Winner less loser (preference dpo: DreamDPO)."""

    gap: float = 0.01
    """Rewards closer than this: the winner alone."""
    form: Literal["paper", "code"] = "paper"
    """code: the loser's prediction is the conditional one, without guidance (official code)."""


@dataclass(frozen=True, kw_only=True)
class PSDOptions:
    """Win/lose pairs with an adaptive scale and a learned negative (preference psd)."""

    rho: float = 1.0
    """Share of the noises that is taken out of the pair's difference: 1 by the theory, 0 by the blog."""
    temperature: float = 1.0
    """Of the Bradley-Terry probability, in units of the reward."""
    gap: float = 0.0
    """Rewards closer than this: no preference term."""
    learn: bool = True
    """Learn the negative embedding on the reward."""
    lr: float = 1e-4
    """Adam's, for the negative embedding; larger ones climb the reward at the object's cost."""
    interval: Annotated[int, arg(metavar="N")] = 5
    """Steps between its updates."""
    anneal: float = 0.1
    """Last share of the run over which its rate falls to 0."""
    t_limit: float = 0.6
    """It learns at times up to this only: at larger ones the reward sees little but its own noise."""


@dataclass(frozen=True, kw_only=True)
class AscentOptions:
    """A reward gradient into the render (preference ascent: DreamReward)."""

    form: Literal["code", "paper"] = "code"
    """code: weight relu(target - reward), matched to the loss by decimal digits; paper: weight reward."""
    weight: float = 0.6
    """Of the missing reward in the loss (code), or of the reward's gradient (paper)."""
    start: float = 0.6
    """Fraction of the run from which it acts."""
    target: float = 4.0
    """Rewards above it have no gradient (code)."""
    straight_through: float = 0.1
    """Times up to which the one-step estimate is judged in place of the render."""
    pure: float = 0.0
    """Last share of the run in which the reward alone guides; the official code does so for 2 to 6 %."""


@dataclass(frozen=True, kw_only=True)
class RewardOptions:
    """How rewards are read and put together."""

    units: Literal["auto", "raw", "standard", "candidates"] = "auto"
    """As they are; less the reward's usual mean, by its usual spread; or standardised over the candidates of
    an item. auto is raw for a single reward and standard for several."""
    view_prompts: bool = False
    """Tell the reward the view, as the prior is told."""
    batch: Annotated[int, arg(metavar="N")] = 0
    """Most images decoded and rewarded at once, to fit memory; 0 takes all."""


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
    relative: bool = False
    """Distances are multiples of 1 / tan(fov / 2): what is 1 high fills half of the picture at distance 1,
    at any field of view."""
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
class Method:
    """What 2D and 3D runs share: what to make, and what guides it."""

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
    patience: Annotated[int, arg(metavar="N")] = 20
    """Steps in a row without a finite gradient before the run goes back to its last checkpoint, once; the
    second time it ends."""
    prior: Annotated[str, arg(metavar="NAME")] = "toybox"
    """The diffusion model that guides: toybox or toybox-mini, the embedded ones; sd15, sd21, sdxl, sd3, sd35,
    deepfloyd or mvdream, whose weights `splatgen fetch` gets."""
    score: Literal["sds", "sdi", "vsd", "csd", "ism"] = "sds"
    """Where the noise of a step comes from, and what is subtracted from the prediction."""
    preference: Literal["none", "weighted", "dpo", "psd", "ascent"] = "none"
    """How the candidate noises of a step are merged by their rewards."""
    reward: Annotated[tuple[str, ...], arg(metavar="NAME[=WEIGHT] ...")] = ("auto",)
    """Rewards that score the renders, after the prompt, and guide a preference: toybox for the toybox priors
    (auto), hpsv2, hpsv2.0, image-reward, pickscore, clip, aesthetic, aesthetic-v2; no name turns scoring
    off."""
    holdout_reward: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ()
    """Rewards that are logged and never guide; also toybox-judge."""
    weights: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Where models are, one folder each by name; those not in it are looked for in the Hugging Face cache."""
    budget: Literal["none", "8gb", "12gb", "16gb", "24gb"] = "none"
    """Memory to stay within: smaller batches, freed text encoders, recomputed activations."""
    prior_options: Annotated[PriorOptions, arg(name="prior")] = field(default_factory=PriorOptions)
    reward_options: Annotated[RewardOptions, arg(name="reward")] = field(default_factory=RewardOptions)
    guidance: GuidanceOptions = field(default_factory=GuidanceOptions)
    sdi: SDIOptions = field(default_factory=SDIOptions)
    vsd: VSDOptions = field(default_factory=VSDOptions)
    ism: ISMOptions = field(default_factory=ISMOptions)
    weighted: WeightedOptions = field(default_factory=WeightedOptions)
    dpo: DPOOptions = field(default_factory=DPOOptions)
    psd: PSDOptions = field(default_factory=PSDOptions)
    ascent: AscentOptions = field(default_factory=AscentOptions)

    def rewards(self) -> dict[str, float]:
        """Weight of each guiding reward by name; ConfigError for a weight that is no number.

        auto is the toybox's reward for the toybox's priors, and none for others: those take gigabytes.
        """
        if self.reward == ("auto",):
            return {"toybox": 1.0} if self.prior.startswith("toybox") else {}
        found: dict[str, float] = {}
        for entry in self.reward:
            name, equals, weight = entry.partition("=")
            try:
                found[name] = float(weight) if equals else 1.0
            except ValueError as error:
                raise ConfigError(
                    f"reward is {entry!r}: write NAME or NAME=WEIGHT, as in hpsv2=0.7"
                ) from error
        return found


@dataclass(frozen=True, kw_only=True)
class EditOptions:
    """What an edit keeps of its source, and how it is put before the cameras."""

    keep: float = 0.02
    """Pull of every pixel back to the source, against the pull of the words; 0 is none. Both are in units of
    predicted noise: what the words ask for by less than this does not happen."""
    fit: Literal["auto", "always", "never"] = "auto"
    """Move and scale the source into view while it is edited: if it is not there already, in any case, or
    not at all."""


@dataclass(frozen=True, kw_only=True)
class Config(Method):
    """Everything a run depends on but its output folder."""

    source: Annotated[str, Suppress] = ""
    """What the input of an edit shows; empty when nothing is edited."""
    init: Annotated[str, arg(metavar="sphere|FILE|shap-e")] = "sphere"
    """Where the cloud comes from: a ball of splats, a splat file, an .obj mesh, or Shap-E for the prompt."""
    edit: Annotated[EditOptions, Suppress] = field(default_factory=EditOptions)
    views: ViewOptions = field(default_factory=ViewOptions)
    splats: SplatOptions = field(default_factory=SplatOptions)
    lr: LearningOptions = field(default_factory=LearningOptions)
    densify: DensifyOptions = field(default_factory=DensifyOptions)
    regularise: RegulariseOptions = field(default_factory=RegulariseOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What is optimised in 2D."""

    space: Literal["latents", "pixels"] = "latents"
    """The prior's own space (its pixels, for a pixel prior), or an image that is encoded at every step."""
    lr: float = 0.03
    """AdamW's, with betas (0.9, 0.99); the papers take 0.01 and 1000 steps."""
    start: Literal["noise", "grey"] = "noise"
    """Unit Gaussian noise in the space, or a grey image."""
    count: Annotated[int, arg(metavar="N")] = 1
    """Images at once, each with noises of its own; vsd shares its copy between them."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints; 0 writes none but the last."""
    log_every: Annotated[int, arg(metavar="N")] = 1
    """Steps between rows of metrics.jsonl."""
    reward_every: Annotated[int, arg(metavar="N")] = 10
    """Steps between reward scores of the images."""


@dataclass(frozen=True, kw_only=True)
class ImageConfig(Method):
    """Everything a 2D run depends on but its output folder."""

    steps: Annotated[int, arg(metavar="N")] = 300
    """Optimisation steps; every schedule scales with them."""
    source: Annotated[str, arg(metavar="TEXT", help_behavior_hint="")] = ""
    """What the picture given with --edit shows."""
    image: ImageOptions = field(default_factory=ImageOptions)


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
    except (ValueError, RecursionError) as error:  # also for numbers of thousands of digits
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
