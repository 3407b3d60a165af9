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
    checkpointing: bool = False  # recompute activations where a gradient goes through the denoiser


BUDGETS: dict[str, Budget] = {
    "none": Budget(free_text=False),
    "8gb": Budget(text_on_cpu=True, denoise=4, decode=1, checkpointing=True),
    "12gb": Budget(text_on_cpu=True, denoise=8, decode=2, checkpointing=True),
    "16gb": Budget(text_on_cpu=True, denoise=16, decode=4, checkpointing=True),
    "24gb": Budget(denoise=32, decode=8),
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

    @property
    def channels_last(self) -> bool:
        """Convolutions in half precision on CUDA are faster that way."""
        return self.device == "cuda" and self.precision != "float32"


def load_options(config: Method, device: str, half: Precision = "float16") -> LoadOptions:
    """How a run's models are kept on a device; half is what the prior likes best on CUDA."""
    budget = BUDGETS[config.budget]
    chosen = config.prior_options.dtype
    precision: Precision = ("float32" if device == "cpu" else half) if chosen == "auto" else chosen
    return LoadOptions(
        device=device,
        precision=precision,
        weights=config.weights,
        text_device="cpu" if budget.text_on_cpu else device,
        decode=config.reward_options.batch or budget.decode,
        checkpointing=budget.checkpointing,
        compile=config.prior_options.compile and config.score != "vsd",  # its copy changes the network
    )
