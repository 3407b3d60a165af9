"""What stands behind the splats while they are optimised and shown."""

from __future__ import annotations

import torch
from torch import Tensor

PLAIN = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0), "grey": (0.5, 0.5, 0.5)}


def random_backgrounds(generator: torch.Generator, count: int) -> Tensor:
    """Plain colours, [count, 3]: 60 % grey, 40 % coloured. Changing them tells object from background."""
    u = torch.rand(count, 4, generator=generator)
    return torch.where(u[:, 3:] < 0.6, u[:, :1].expand(-1, 3), u[:, :3])


def backgrounds(name: str, generator: torch.Generator, count: int) -> Tensor:
    """[count, 3] by name: random, white, black or grey."""
    if name == "random":
        return random_backgrounds(generator, count)
    return torch.tensor(PLAIN[name]).expand(count, 3)
