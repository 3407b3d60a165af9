"""The settings of a run, all together: of an object, and of an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tyro.conf import Fixed, Positional, Suppress, arg

from splatgen.config.guidance_options import (
    AscentOptions,
    BridgeOptions,
    DPOOptions,
    GuidanceOptions,
    ISMOptions,
    NFSDOptions,
    PSDOptions,
    RefineOptions,
    SDIOptions,
    VSDOptions,
    WeightedOptions,
)
from splatgen.config.model_options import PriorOptions, RewardOptions
from splatgen.config.run_options import EditOptions, ImageOptions, OutputOptions
from splatgen.config.scene_options import (
    DensifyOptions,
    LearningOptions,
    RegulariseOptions,
    RenderOptions,
    SplatOptions,
    ViewOptions,
)


class ConfigError(ValueError):
    """A setting that cannot be used; the message names it, its value and what would do."""


SCORES = ("sdi", "vsd", "ism", "nfsd", "bridge", "refine")  # those with options of their own
PREFERENCES = ("weighted", "dpo", "psd", "ascent")
RANKING = ("weighted", "dpo", "psd")  # those that have several candidates
EMBEDDED = {"shelf": "shelf", "toybox": "toybox", "toybox-mini": "toybox"}  # priors: the reward of each


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
    """The same seed gives the same cameras, times and noises; random draws one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is one."""
    patience: Annotated[int, arg(metavar="N")] = 20
    """Steps in a row without a finite gradient before the run goes back to its last checkpoint, once; the
    second time it ends."""
    prior: Annotated[str, arg(metavar="NAME")] = "toybox"
    """The diffusion model that guides: shelf, toybox or toybox-mini, the embedded ones; sd15, sd21, sdxl,
    sd3, sd35, deepfloyd or mvdream, whose weights `splatgen fetch` gets."""
    score: Literal["sds", "sdi", "vsd", "csd", "nfsd", "ism", "bridge", "refine"] = "sds"
    """Where the noise of a step comes from, and what is subtracted from the prediction; refine is none: it
    fits pictures of what is there, sharpened."""
    preference: Literal["none", "weighted", "dpo", "psd", "ascent"] = "none"
    """How the candidate noises of a step are merged by their rewards."""
    reward: Annotated[tuple[str, ...], arg(metavar="NAME[=WEIGHT] ...")] = ("auto",)
    """Rewards that score the renders, after the prompt, and guide a preference: shelf or toybox for the
    embedded priors (auto), hpsv2, hpsv2.0, hpsv3, image-reward, pickscore, clip, clip-b32, vqa, vqa-7b,
    clip-iqa, aesthetic, aesthetic-v2, or reward3d with a four-view prior; no name turns scoring off."""
    holdout_reward: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ()
    """Rewards that are logged and never guide; also toybox-judge and shelf-judge."""
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
    nfsd: NFSDOptions = field(default_factory=NFSDOptions)
    bridge: BridgeOptions = field(default_factory=BridgeOptions)
    refine: RefineOptions = field(default_factory=RefineOptions)
    weighted: WeightedOptions = field(default_factory=WeightedOptions)
    dpo: DPOOptions = field(default_factory=DPOOptions)
    psd: PSDOptions = field(default_factory=PSDOptions)
    ascent: AscentOptions = field(default_factory=AscentOptions)

    def rewards(self) -> dict[str, float]:
        """Weight of each guiding reward by name; ConfigError for a weight that is no number.

        auto is the embedded reward for the embedded priors, and none for others: those take gigabytes.
        """
        if self.reward == ("auto",):
            return {EMBEDDED[self.prior]: 1.0} if self.prior in EMBEDDED else {}
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
class Config(Method):
    """Everything a run depends on but its output folder."""

    source: Annotated[str, Suppress] = ""
    """What the input of an edit shows; empty when nothing is edited."""
    init: Annotated[str, arg(metavar="sphere|FILE|shap-e")] = "sphere"
    """Where the cloud comes from: a ball of splats, a splat file, a mesh, or Shap-E for the prompt."""
    edit: Annotated[EditOptions, Suppress] = field(default_factory=EditOptions)
    views: ViewOptions = field(default_factory=ViewOptions)
    render: RenderOptions = field(default_factory=RenderOptions)
    splats: SplatOptions = field(default_factory=SplatOptions)
    lr: LearningOptions = field(default_factory=LearningOptions)
    densify: DensifyOptions = field(default_factory=DensifyOptions)
    regularise: RegulariseOptions = field(default_factory=RegulariseOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    stages: Annotated[tuple[dict[str, Any], ...], Suppress, Fixed] = ()
    """Shares of the steps, each with settings of its own (config/stages.py); a run may have none."""


@dataclass(frozen=True, kw_only=True)
class ImageConfig(Method):
    """Everything a 2D run depends on but its output folder."""

    steps: Annotated[int, arg(metavar="N")] = 300
    """Optimisation steps; every schedule scales with them."""
    source: Annotated[str, arg(metavar="TEXT", help_behavior_hint="")] = ""
    """What the picture given with --edit shows."""
    image: ImageOptions = field(default_factory=ImageOptions)
