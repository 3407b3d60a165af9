"""Latents of mean 0 and deviation 1: an autoencoder's statistics, put into its own last and first layers.

Shapes: C latent channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from splatgen.worlds.shelf.losses import cutouts
from splatgen.worlds.shelf.model import FOLD, fold
from splatgen.worlds.shelf.recipes import Recipe

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

FIRST_STEP = 2 * 10**9  # batches that neither training nor figures reach


@torch.no_grad()
def statistics(
    net: AutoencoderKL, recipe: Recipe, device: torch.device, batches: int = 64
) -> tuple[Tensor, Tensor]:
    """Mean and deviation [C] of the latents of cut-outs that training does not see."""
    found = []
    for step in range(FIRST_STEP, FIRST_STEP + batches):
        x, _, _ = cutouts(recipe, step, net.config.sample_size * FOLD)
        found.append(net.encode(fold(x.to(device))).latent_dist.mean)
    z = torch.cat(found)
    return z.mean((0, 2, 3)), z.std((0, 2, 3))


@torch.no_grad()
def standardise(net: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
    """Make encode give (z - mean) / deviation and decode take it; pictures stay what they were.

    The convolutions between the networks and the latents are 1 x 1, so this is exact.
    """
    into, out = net.quant_conv, net.post_quant_conv
    n = len(mean)  # the second half of `into` is the log variance, which nobody reads
    into.weight[:n] /= deviation[:, None, None, None]
    into.bias[:n] = (into.bias[:n] - mean) / deviation
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation[None, :, None, None]
