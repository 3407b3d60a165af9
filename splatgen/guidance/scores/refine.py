"""Pictures that the prior has sharpened, in place of a direction at every step.

Shapes: V views of a round, B of them, C x h x w the prior's space, S the prior's side in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from splatgen.config import RefineOptions
from splatgen.guidance.inversion import walk
from splatgen.guidance.moment import Moment
from splatgen.guidance.scores.sds import SDS
from splatgen.scene.uploads import upload


class Refine(SDS):
    """Several reverse steps from a small time, decoded (SDEdit, Meng et al. 2021, of each view of an object).

        x_t = alpha x + sigma n,   x_0 = DDIM from t to 0 in equal steps,   picture = decode(x_0)

    The splats are then fitted to the pictures (loop/refining.py), which DreamGaussian (Tang et al. 2023,
    section 3.3) does for the texture of a mesh, with a picture of its own for each step. Here a round of
    steps shares a set of pictures: a tenth of the predictions, and its views hold each other to one object.
    """

    def __init__(self, options: RefineOptions) -> None:
        self.options = options
        self.began = -1  # step at which the round of the pictures began
        self.pictures = torch.zeros(0)  # [V, 3 or 4, S, S] in 0..1, see loop/refining.py

    def sharpened(self, moment: Moment, generator: torch.Generator) -> Tensor:
        """Where the views of a moment come to, x [B, C, h, w], whatever its time."""
        times = torch.full_like(moment.times, self.options.time)
        moment = replace(moment, times=times, t=upload(times, moment.x.device))
        noise = torch.randn(moment.x.shape, generator=generator)
        x_t = moment.noised(upload(noise, moment.x.device).to(moment.x.dtype)[None])
        share = torch.linspace(1.0, 0.0, self.options.steps + 1)
        return walk(moment, x_t, share[:, None].to(times) * times, scale=moment.scale, plain=False)[0]

    def state_dict(self) -> dict[str, Any]:
        return {"began": self.began, "pictures": self.pictures} if self.began >= 0 else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self.began, self.pictures = int(state["began"]), state["pictures"]
