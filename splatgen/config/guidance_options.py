"""Settings of guidance, and of each score and preference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """Classifier-free guidance, times and weights."""

    scale: float = 1.5
    """Guidance scale w in e_n + w (e_y - e_n); 1 is the plain conditional prediction."""
    scale_end: Annotated[float | None, arg(metavar="W", help_behavior_hint="")] = None
    """Scale at the end of scale_over; by default scale all along."""
    null_scale: tuple[float, float] = (0.0, 0.0)
    """Scale w_0 of e_y - e_0, away from the empty prompt, beside the negative one: at the start and at the
    end of scale_over."""
    scale_over: tuple[float, float] = (0.0, 1.0)
    """Fractions of the run between which scales change."""
    rescale: float = 0.0
    """Pull the estimate's spread back toward the conditional one's, 0 to 1 (Lin et al. 2023)."""
    clamp: bool = True
    """Clamp the one-step estimate to the image range (pixel priors only)."""
    view_prompts: Literal["words", "blend", "none"] = "words"
    """How a view is told: front, side, back or overhead; a blend of neighbours by angle; or not at all."""
    view_limits: tuple[float, float] = (45.0, 52.0)
    """Degrees: to either side that are still the front (and the back), and of elevation from which a view is
    from overhead. The embedded worlds know these; published are 45 or 30, and 60."""
    perp_neg: bool = False
    """Steer away from neighbouring views, perpendicular to the prompt (Perp-Neg); takes blended views."""
    times: Literal["auto", "random", "shared", "annealed", "sqrt", "dreamtime"] = "auto"
    """Stratified random times, a random one for all views, or one that falls from the first t_max to t_min
    over the run: linearly, with the root of the steps, or as DreamTime has it; auto is annealed for sdi, else
    random."""
    t_min: float = 0.1
    """Smallest diffusion time."""
    t_min_start: Annotated[float | None, arg(metavar="T", help_behavior_hint="")] = None
    """Smallest time at the start of the annealing, to fall to t_min; by default t_min all along."""
    t_max: tuple[float, float] = (0.98, 0.50)
    """Largest diffusion time at the start and at the end of the annealing."""
    anneal: tuple[float, float] = (0.0, 0.8)
    """Fractions of the run between which these fall (random times)."""
    shift: float = 1.0
    """Random times t become shift t / (1 + (shift - 1) t): 3 is what Stable Diffusion 3's samplers visit."""
    noise: Literal["fresh", "world"] = "fresh"
    """Of each view and step its own, or out of one field around the object, which all views see."""
    noise_cell: float = 0.03
    """Size of the field's cells, world units: about that of a pixel of the render."""
    noise_renewals: float = 0.0
    """How many times over the run the field becomes another; 0 keeps it."""
    weighting: Literal["auto", "sds", "uniform", "sigma", "fantasia3d", "flow", "dmd"] = "auto"
    """w(t): sigma^2 (sds), 1, sigma/alpha, alpha sigma^2, 1/alpha (flow: the residual in velocities), or over
    the mean |e - n| of a view (dmd); auto is sigma for sdi and ism, else uniform."""
    clip: tuple[float, float] = (0.0, 0.0)
    """Largest element of G, at the start and at the end of clip_over; 0 is no limit."""
    clip_over: tuple[float, float] = (0.0, 1.0)
    """Fractions of the run between which clip changes."""
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
    reverse: Annotated[int, arg(metavar="N")] = 1
    """DDIM steps of the estimate that the render is pulled to: 1 is SDI, more are probability-flow
    distillation."""


@dataclass(frozen=True, kw_only=True)
class NFSDOptions:
    """Noise-free score distillation (score nfsd)."""

    limit: float = 0.2
    """Times from which the negative prompt is subtracted; below, nothing is."""


@dataclass(frozen=True, kw_only=True)
class BridgeOptions:
    """A second pair of prompts for quality (score bridge: SDS-Bridge)."""

    quality: Annotated[str, arg(metavar="TEXT", help_behavior_hint="")] = ""
    """Added to the prompt in the second phase, after a comma."""
    flaws: Annotated[str, arg(metavar="TEXT", help_behavior_hint="")] = ""
    """Added to the prompt that is subtracted there; without, it is the negative prompt."""
    start: float = 0.5
    """Fraction of the run from which the second phase is."""


@dataclass(frozen=True, kw_only=True)
class VSDOptions:
    """The trained baseline (score vsd)."""

    rank: Annotated[int, arg(metavar="N")] = 4
    """Of the LoRA matrices."""
    lr: float = 3e-3
    """AdamW's rate for them; published is 1e-4, for tens of thousands of steps (docs/alignment.md)."""
    weight_decay: float = 0.0
    """AdamW's, for them."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's."""
    eps: float = 1e-8
    """AdamW's."""
    start: Literal["linear", "normal"] = "linear"
    """How its first matrices start: as torch's linear layers do, U(-1, 1) / sqrt(width), or as published,
    N(0, 1 / rank^2); the second ones are 0."""
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
    interval_start: Annotated[float | None, arg(metavar="T", help_behavior_hint="")] = None
    """At the start of the warm-up, to fall to interval; by default interval all along."""
    warmup: float = 0.3
    """Fraction of the run over which it falls."""
    step: float = 0.2
    """Of the unconditional inversion up to s."""
    start: float = 0.001
    """Time to which the render is noised before the inversion; what tells candidates apart."""
    offset: float = 0.1
    """Of that noise in whole channels."""


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """Pictures of an object, sharpened by the prior, that it is fitted to (score refine)."""

    time: float = 0.3
    """To which a view is noised; the larger, the more of it is made up anew."""
    steps: Annotated[int, arg(metavar="N")] = 8
    """Reverse steps from there."""
    views: Annotated[int, arg(metavar="N")] = 24
    """Pictures a round."""
    rounds: Annotated[int, arg(metavar="N")] = 2
    """Sets of pictures, one after the other, each from other views of what the last one made."""
    ssim: float = 0.2
    """Share of 1 - SSIM in the loss; the rest is L1."""


@dataclass(frozen=True, kw_only=True)
class WeightedOptions:
    """Candidate noises weighted by reward (preference weighted: RewardSDS, RewardVSD)."""

    candidates: Annotated[int, arg(metavar="N")] = 4
    """Noises an item."""
    lookahead: Annotated[int, arg(metavar="S")] = 1
    """DDIM steps of an estimate from t = 1 down; 1 is the one-step estimate."""
    scale: Annotated[float | None, arg(metavar="W", help_behavior_hint="")] = None
    """Guidance scale of the look-ahead; by default guidance.scale."""
    levels: Literal["steps", "code"] = "steps"
    """Of the look-ahead, below t: multiples of 1/S; or S even ones from 0 to 0.999 (official code), which
    takes a step less."""
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
