"""What latent diffusion models share: an autoencoder both ways, a table of trained times, CLIP's text.

Shapes: B images, latents or prompts, H x W pixels, C x h x w latents, T times of a training schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from splatgen.config import PriorOptions
from splatgen.models.budget import LoadOptions
from splatgen.models.loading import component, placed, torch_dtype
from splatgen.models.weights import find

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

Decoder = Callable[[Tensor], Tensor]
Prediction = Literal["epsilon", "velocity"]

PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "velocity"}  # diffusers' names


class Latents:
    """Images to the latents of an autoencoder and back, in the precision of the one who asks.

    Latents are what the denoiser sees: (z - shift) scale, by the autoencoder's configuration.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        *,
        resolution: int,  # side of the images that are encoded
        tiny: AutoencoderTiny | None = None,  # for previews
        at_once: int = 0,  # latents decoded together where no gradient is asked; 0 takes all
    ) -> None:
        self.vae, self.tiny = vae, tiny
        self.resolution = resolution
        self._at_once = at_once

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1 to latents [B, C, h, w], resized to the model's side first.

        The mean of the autoencoder's posterior. Published codes take a sample of it; here a render has one
        latent, so that a step depends on nothing but its seed and its number.
        """
        side = (self.resolution, self.resolution)
        if images.shape[-2:] != side:
            images = interpolate(images, size=side, mode="bilinear", antialias=True)
        posterior = self.vae.encode((2.0 * images - 1.0).to(self.vae.dtype)).latent_dist
        shift, scale = self._numbers()
        x: Tensor = scale * (posterior.mean.to(images.dtype) - shift)
        return x

    def decode(self, x: Tensor) -> Tensor:
        """Latents [B, C, h, w] to images [B, 3, H, W] in 0..1."""
        return self._in_parts(x, self._decode)

    def preview(self, x: Tensor) -> Tensor:
        """As decode, by the tiny autoencoder where there is one."""
        return self._in_parts(x, self._decode if self.tiny is None else self._decode_tiny)

    def _decode(self, x: Tensor) -> Tensor:
        shift, scale = self._numbers()
        return _pixels(self.vae.decode((x / scale + shift).to(self.vae.dtype)).sample, x.dtype)

    def _decode_tiny(self, x: Tensor) -> Tensor:
        """Tiny autoencoders (madebyollin's TAESD) read what the denoiser sees, with no scale in between."""
        assert self.tiny is not None
        return _pixels(self.tiny.decode(x.to(self.tiny.dtype)).sample, x.dtype)

    def _in_parts(self, x: Tensor, decode: Decoder) -> Tensor:
        if torch.is_grad_enabled() or not 0 < self._at_once < len(x):
            return decode(x)
        return torch.cat([decode(part) for part in torch.split(x, self._at_once)])

    def _numbers(self) -> tuple[float, float]:
        config = self.vae.config
        return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor


def _pixels(found: Tensor, dtype: torch.dtype) -> Tensor:
    """Of networks that speak -1..1."""
    images: Tensor = (0.5 * (found.to(dtype) + 1.0)).clamp(0.0, 1.0)
    return images


class TableSchedule:
    """A schedule of T trained times, asked at those only.

    t in 0..1 means the time nearest to T t (0.02 is 20 of 1000 and 0.98 is 980, as in the published ranges; 1
    is the last one), for the network and for alpha and sigma alike. Times that fall on the same row are the
    same time.
    """

    def __init__(self, name: str, alphas_cumprod: Tensor, device: torch.device | str) -> None:
        """Take alphas_cumprod [T]; raises ValueError unless it falls from below 1 to above 0."""
        table = alphas_cumprod.detach().to("cpu", torch.float64)
        if table.ndim != 1 or bool((table.diff() >= 0).any()) or table[0] >= 1 or table[-1] <= 0:
            raise ValueError(
                f"the schedule of {name} must fall from below 1 to above 0: give the scheduler's "
                "alphas_cumprod, not rescaled to end at 0"
            )
        self._alpha, self._sigma = (z.sqrt().to(device) for z in (table, 1.0 - table))  # [T] each

    def rows(self, t: Tensor) -> Tensor:
        """The rows of the schedule [B] that are nearest to times [B]."""
        count = len(self._alpha)
        return (count * t.float()).round().long().clamp(0, count - 1)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise amplitudes at times t [B], each [B, 1, 1, 1]."""
        rows = self.rows(t)
        alpha, sigma = (table[rows].to(t.dtype).view(-1, 1, 1, 1) for table in (self._alpha, self._sigma))
        return alpha, sigma


def clip_tokens(tokenizer: Any, prompts: Sequence[str], *, name: str, most: int = 77) -> Tensor:
    """Token numbers [B, most] of prompts for one of CLIP's text encoders, on the CPU.

    Raises ValueError for a prompt with more tokens than that. (Published codes cut it, and with it the words
    for the view, which come last.)
    """
    for prompt in prompts:
        count = len(tokenizer(prompt).input_ids)
        if count > most:
            raise ValueError(
                f"the prompt {prompt[:40]!r}... has {count - 2} tokens and {name} reads {most - 2}: "
                "shorten it"
            )
    tokens = tokenizer(list(prompts), padding="max_length", max_length=most, return_tensors="pt")
    found: Tensor = tokens.input_ids
    return found


def known_prediction(name: str, prediction_type: str) -> Prediction:
    """What a network predicts, from diffusers' name for it; ValueError for anything else."""
    if prediction_type not in PREDICTIONS:
        raise ValueError(f"{name} predicts {prediction_type!r}: give a model of {' or '.join(PREDICTIONS)}")
    return PREDICTIONS[prediction_type]


def as_noise(prediction: Prediction, out: Tensor, x_t: Tensor, amplitudes: tuple[Tensor, Tensor]) -> Tensor:
    """The noise in x_t [B, C, h, w] from what a network said of it: v = alpha eps - sigma x0."""
    alpha, sigma = amplitudes
    return out if prediction == "epsilon" else sigma * x_t + alpha * out


def check_match(name: str, what: str, network: int, other: int) -> None:
    """Raise ValueError for parts that were not trained together."""
    if network != other:
        raise ValueError(
            f"the UNet of {name} takes {network} {what} and gets {other}: give parts of one checkpoint that "
            "generates images from text"
        )


def trained_side(unet: UNet2DConditionModel, vae: AutoencoderKL) -> int:
    """Pixels of the images that a model was trained on."""
    side: int = unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
    return side


def tiny_autoencoder(name: str, options: PriorOptions, load_options: LoadOptions) -> AutoencoderTiny | None:
    """The published autoencoder for previews (taesd, taesdxl, ...), if the options ask for one."""
    if options.preview != "tiny":
        return None
    from diffusers import AutoencoderTiny

    return placed(
        component(AutoencoderTiny, find(name, load_options.weights).main, dtype=torch_dtype(load_options)),
        load_options,
    )


def full(states: Tensor) -> Tensor:
    """Text features in float32 or better: they may be learned."""
    return states.to(torch.promote_types(states.dtype, torch.float32))
