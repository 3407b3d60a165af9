"""What a memory budget means: how models are kept and how much goes through them at once. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from splatgen.config import Method

Precision = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What is given up, in the order in which it costs little."""

    free_text: bool = True  # text encoders go once the prompts are embedded
    text_on_cpu: bool = False  # encoders of gigabytes (T5) embed on the CPU
    denoise: int = 0  # images through the denoiser at once; 0 takes all
    decode: int = 0  # images decoded and rewarded at once
    encode: int = 0  # images encoded at once, without a graph, and once more for the gradient; 0 keeps it
    learning: int = 0  # images at once where a gradient goes through denoiser, decoder or reward
    checkpointing: bool = False  # recompute activations where a gradient goes through the denoiser
    room: float = 0.0  # GiB of large networks on the GPU at once, which take turns; 0 keeps all there
    rough: bool = False  # SDXL's autoencoder in bfloat16, not in float32
    most: float = 0.0  # GiB that tensors take at most, for the settings of docs/models.md; 0 is not promised


BUDGETS: dict[str, Budget] = {
    "none": Budget(free_text=False),
    "8gb": Budget(
        text_on_cpu=True,
        denoise=4,
        decode=1,
        encode=1,
        learning=1,
        checkpointing=True,
        room=4.9,
        rough=True,
        most=6.0,
    ),
    "12gb": Budget(
        text_on_cpu=True,
        denoise=8,
        decode=2,
        encode=2,
        learning=1,
        checkpointing=True,
        room=5.5,
        rough=True,
        most=9.5,
    ),
    "16gb": Budget(
        text_on_cpu=True, denoise=16, decode=4, encode=2, learning=4, checkpointing=True, room=6.0, most=13.0
    ),
    "24gb": Budget(denoise=32, decode=8, learning=2, most=20.0),
}


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How the models of a run are loaded and kept: what every loader is told."""

    device: str = "cpu"
    precision: Precision = "float32"  # of denoisers, autoencoders and rewards
    weights: str | None = None  # a folder of published models, one folder each by name
    text_device: str = "cpu"  # for text encoders of gigabytes; small ones are with the rest
    decode: int = 0
    checkpointing: bool = False
    compile: bool = False
    paged: bool = False  # networks are on the device only while it is their turn
    rough: bool = False  # in half precision even an autoencoder that should not be

    @property
    def channels_last(self) -> bool:
        """Convolutions in half precision on CUDA are faster that way."""
        return self.device == "cuda" and self.precision != "float32"


def decoded_at_once(budget: Budget, *, large: bool) -> int:
    """Images through decoder and rewards: a large prior's have four times the pixels, in float32."""
    return max(budget.decode // 4, 1) if large and budget.decode else budget.decode


def not_compiled(config: Method, *, large: bool = False) -> str:
    """Why a denoiser is not compiled though that was asked for; empty where it is, or was not."""
    if not config.prior_options.compile:
        return ""
    if config.score == "vsd":
        return "vsd switches a copy on and off in the network"
    return "its weights come and go under this budget" if large and BUDGETS[config.budget].room else ""


def load_options(
    config: Method, device: str, half: Precision = "float16", *, large: bool = False
) -> LoadOptions:
    """How a run's models are kept on a device; half is what the prior likes best on CUDA.

    large: it takes gigabytes, and takes turns with the other networks where the budget is small.
    """
    budget = BUDGETS[config.budget]
    chosen = config.prior_options.dtype
    precision: Precision = ("float32" if device == "cpu" else half) if chosen == "auto" else chosen
    return LoadOptions(
        device=device,
        precision=precision,
        weights=config.weights,
        text_device="cpu" if budget.text_on_cpu else device,
        decode=config.reward_options.batch or decoded_at_once(budget, large=large),
        checkpointing=budget.checkpointing or (large and budget.most > 0),
        compile=config.prior_options.compile and not not_compiled(config, large=large),
        rough=budget.rough and device == "cuda",
        paged=large and budget.room > 0 and device == "cuda",
    )
