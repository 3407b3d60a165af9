"""What stands behind the splats while they are optimised and shown."""

from __future__ import annotations

import torch
from torch import Tensor

PLAIN = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0), "grey": (0.5, 0.5, 0.5)}


def random_backgrounds(generator: torch.Generator, count: int) -> Tensor:
    """Plain colours, [count, 3]: 60 % grey, 40 % coloured. Changing them tells object from background."""
    u = torch.rand(count, 4, generator=generator)
    return torch.where(u[:, 3:] < 0.6, u[:, :1].expand(-1, 3), u[:, :3])


def backgrounds(name: str, generator: torch.Generator, count: int, group: int = 1) -> Tensor:
    """[count, 3] by name: random, white-or-black (an even chance), white, black or grey.

    One draw for each `group` views that follow one another: a multi-view prior was trained on groups that
    share theirs, as MVDream, RewardSDS, DreamDPO and threestudio-3dgs do.
    """
    items = count // group
    match name:
        case "random":
            found = random_backgrounds(generator, items)
        case "white-or-black":
            found = (torch.rand(items, 1, generator=generator) < 0.5).float().expand(items, 3)
        case _:
            found = torch.tensor(PLAIN[name]).expand(items, 3)
    return found.repeat_interleave(group, 0)
