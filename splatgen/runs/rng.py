"""Randomness as a function of (seed, step, purpose), never as a state.

A run needs no generator state in its checkpoints, and drawing one more number for one purpose
cannot shift the numbers of another: two methods on the same seed see the same cameras, times
and noises, so comparisons are paired.
"""

from __future__ import annotations

import hashlib

import torch


def rng(seed: int, step: int, purpose: str) -> torch.Generator:
    """Return a fresh CPU generator that depends on nothing but its arguments.

    Draw on the CPU and move the result: the same numbers then reach every device.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
