"""Settings of the networks: which weights a prior takes, and how rewards are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg


@dataclass(frozen=True, kw_only=True)
class PriorOptions:
    """Which diffusion model guides, and how."""

    model: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")] = None
    """Weights to use instead of the usual ones: a folder, a single file, or an id in the Hugging Face cache.
    For an embedded prior, a folder that holds NAME.safetensors and NAME.json."""
    revision: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Branch, tag or commit of an id given as prior.model."""
    lora: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """A .safetensors file of LoRA weights to merge into the model."""
    lora_scale: float = 1.0
    """How much of the LoRA weights."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Of the networks; auto is half precision on CUDA and float32 on the CPU (the shelf's
    denoiser: bfloat16 there, too, where the CPU has instructions for it)."""
    prediction: Literal["auto", "epsilon", "v"] = "auto"
    """What the network predicts, the noise or v; auto is what its files say, else what the usual ones do."""
    preview: Literal["full", "tiny"] = "full"
    """What decodes candidates for ranking: the model's own autoencoder, or the tiny one made for it."""
    compile: bool = False
    """Compile the denoiser with torch.compile: a minute or more at first, then faster steps."""
    t5: bool = True
    """Use the T5 text encoder of Stable Diffusion 3; without it, prompts are read by CLIP alone."""
    camera: bool = True
    """Tell a camera-aware prior the exact viewing direction, not only the view word."""


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
