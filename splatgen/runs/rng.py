"""Randomness as a function of (seed, step, purpose), never as a state.

A run needs no generator state in its checkpoints, and drawing one more number for one purpose
cannot shift the numbers of another: two methods on the same seed see the same cameras, times
and noises, so comparisons are paired.
"""

from __future__ import annotations

import hashlib

import torch


def rng(seed: int, step: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator that depends on nothing but its arguments.

    Draw on the CPU and move the result: the same numbers then reach every device. Only where they are too
    many to be moved, as in training, draw on the device.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
