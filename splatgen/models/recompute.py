"""An autoencoder whose layers make their activations again when a gradient comes back.

diffusers recomputes whole blocks, of which the largest, at 1024 pixels, holds a dozen tensors of a gigabyte.
With its layers recomputed inside, it holds those of one layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_layers(autoencoder: nn.Module) -> None:
    """Of an AutoencoderKL, while its gradient checkpointing is enabled."""
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    for half in (autoencoder.encoder, autoencoder.decoder):
        for layer in half.modules():  # type: ignore[union-attr]
            if isinstance(layer, ResnetBlock2D | Downsample2D | Upsample2D):
                layer.forward = functools.partial(_again, half, layer.forward)


def _again(half: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if half.gradient_checkpointing and torch.is_grad_enabled():
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return forward(*args, **kwargs)
