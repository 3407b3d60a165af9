"""Renders into the prior's space and gradients back, within a budget a part at a time.

Shapes: B views, C x h x w the prior's space.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from splatgen.guidance.distillation import inject
from splatgen.priors import PRIORS, CoveragePrior, Prior
from splatgen.rasterizer import Render
from splatgen.scene.uploads import upload

Inputs = tuple[Tensor, ...]  # of a prior's encoder: pictures [B, 3, H, W], and coverage [B, 1, H, W] for some


def encoder_inputs(
    prior: str,
    out: Render,
    behind: Tensor,  # [B, 3] what the step put behind the splats
) -> Inputs:
    """What the encoder of a prior, by name, is given of a step's render.

    A prior of cut-out things gets the coverage, and the colours without what the step put behind them.
    """
    if not PRIORS[prior].coverage:
        return (out.rgb,)
    color = upload(behind, out.rgb.device)[:, :, None, None]
    return out.rgb - (1.0 - out.alpha) * color, out.alpha


def encode(prior: Prior, inputs: Inputs, at_once: int) -> Tensor:
    """Inputs of the encoder to x [B, C, h, w].

    With at_once, a budget's, in parts of so many and without a graph, which would be held all through the
    guidance.
    """
    encoder = cast("CoveragePrior", prior).encode
    if not at_once:
        return encoder(*inputs)
    with torch.no_grad():
        parts = zip(*(torch.split(z, at_once) for z in inputs), strict=True)
        return torch.cat([encoder(*part) for part in parts])


def pull_back(
    prior: Prior,
    at_once: int,
    x: Tensor,
    value: Tensor,
    inputs: Inputs,
    images: Tensor,
    on_render: Tensor | None = None,
) -> None:
    """Back-propagate G / B [B, C, h, w] from x, and a gradient with respect to the images, to the splats.

    Where x has no graph, the encoder's inputs are encoded once more, a part at a time.
    """
    if x.requires_grad:
        inject(x, value, images, on_render)
        return
    encoder = cast("CoveragePrior", prior).encode
    found = []
    parts = zip(*(torch.split(z.detach(), at_once) for z in inputs), strict=True)
    for part, pull in zip(parts, torch.split(value, at_once), strict=True):
        leaves = [z.clone().requires_grad_() for z in part]
        found.append(torch.autograd.grad(encoder(*leaves), leaves, pull / len(value)))
    tensors, gradients = list(inputs), [torch.cat(gradient) for gradient in zip(*found, strict=True)]
    if on_render is not None:
        tensors, gradients = [*tensors, images], [*gradients, on_render]
    torch.autograd.backward(tensors, gradients)
