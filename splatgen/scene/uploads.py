"""From the CPU to a GPU without waiting for it: numbers are drawn on the CPU, and are there when it comes to
them.

A copy from ordinary memory makes the program wait until the GPU has done all it was told before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(value: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; the same one where it is there already."""
    if value.device.type == "cpu" and torch.device(device).type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def upload_together(values: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Small tensors of one type on a device, those of the CPU in a single copy."""
    loose = [value for value in values if value.device.type == "cpu"]
    if torch.device(device).type != "cuda" or len(loose) < 2:
        return [upload(value, device) for value in values]
    flat = upload(torch.cat([value.flatten() for value in loose]), device)
    parts = iter(torch.split(flat, [value.numel() for value in loose]))
    return [
        next(parts).view(value.shape) if value.device.type == "cpu" else value.to(device) for value in values
    ]
