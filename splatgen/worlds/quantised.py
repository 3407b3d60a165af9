"""Weights on disk in a quarter of their size: rows of int8 with a scale each.

A matrix or kernel W [R, ...] is kept as round(W / s) with s [R] = max |row| / 127, so no weight moves by more
than half a step of its row. Vectors (biases, norms) are kept in float16.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".scale"  # what is added to a name for the scales of its rows


def quantised(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with its matrices and kernels as int8, and their scales [R] in float32 beside them."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if value.ndim < 2 or not value.is_floating_point():
            found[name] = value.half() if value.is_floating_point() else value
            continue
        rows = value.float().flatten(1)  # [R, N]
        scale = (rows.abs().amax(1) / 127.0).clamp_min(1e-12)
        whole = (rows / scale[:, None]).round().to(torch.int8)
        found[name], found[name + SCALE] = whole.view(value.shape), scale
    return {name: value.detach().cpu().contiguous() for name, value in found.items()}


def restored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state in float32 again; one without scales, in any precision, is taken as it is."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in state:
            continue
        scale = state.get(name + SCALE)
        whole = value.float() if value.is_floating_point() or scale is not None else value
        found[name] = whole if scale is None else whole * scale.view(-1, *[1] * (value.ndim - 1))
    return found
