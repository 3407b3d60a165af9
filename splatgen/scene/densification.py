"""Growing and pruning the cloud: a thin policy over gsplat's DefaultStrategy, with a hard cap.

What is settled here and not there: rounds are fractions of the run; the splats that grow are a share of
the visible ones, ranked by their screen-space gradient, because a threshold tuned for one guidance scale
or method means nothing for another; opacity resets are ours, since gsplat 1.5.3 never performs them
(`step % reset_every == 0 & step > 0` is always false); gsplat's random draws are seeded by step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from gsplat.strategy import DefaultStrategy
from gsplat.strategy.ops import remove, reset_opa
from torch import Tensor

from splatgen.config import DensifyOptions
from splatgen.runs.rng import rng

Params = dict[str, torch.nn.Parameter]
Optimizers = dict[str, torch.optim.Optimizer]
NEVER = 10**12  # a step that no run reaches


class _CappedStrategy(DefaultStrategy):  # type: ignore[misc]
    """DefaultStrategy whose growth threshold is a rank, so that the count is known beforehand."""

    share: float = 0.1
    max_splats: int = 20_000

    def _grow_gs(
        self, params: Params, optimizers: Optimizers, state: dict[str, Any], step: int
    ) -> tuple[int, int]:
        self.grow_grad2d = growth_threshold(
            state["grad2d"] / state["count"].clamp_min(1),
            share=self.share,
            room=self.max_splats - len(params["means"]),
        )
        grown: tuple[int, int] = super()._grow_gs(params, optimizers, state, step)
        return grown

    def _update_state(
        self, params: Params, state: dict[str, Any], info: dict[str, Any], packed: bool = False
    ) -> None:
        """What gsplat's does, without looking up the visible splats, for which it waits for the device."""
        means2d, visible = info["means2d"], (info["radii"] > 0).all(-1)  # [C, N]
        gradients = means2d.grad.clone()
        gradients[..., 0] *= info["width"] / 2.0 * info["n_cameras"]
        gradients[..., 1] *= info["height"] / 2.0 * info["n_cameras"]
        for key in ("grad2d", "count"):
            if state[key] is None:
                state[key] = torch.zeros(len(params["means"]), device=means2d.device)
        for seen, norms in zip(visible, gradients.norm(dim=-1), strict=True):  # the cameras
            state["grad2d"] += torch.where(seen, norms, 0.0)
            state["count"] += seen


def growth_threshold(gradients: Tensor, *, share: float, room: int) -> float:
    """The value that at most `room` gradients [N], and at most that share of the positive ones, exceed."""
    visible = int((gradients > 0).sum())
    allowed = min(math.floor(share * visible), max(room, 0))
    if allowed == 0:
        return math.inf
    ranked = gradients.sort(descending=True).values
    return float(ranked[allowed]) if allowed < len(ranked) else 0.0


class Densifier:
    """Refines params and their optimisers in place; its state survives a checkpoint."""

    def __init__(self, options: DensifyOptions, *, steps: int, seed: int, first: int = 0) -> None:
        """For so many steps from the first one on."""
        self.options = options
        self.seed = seed
        span = options.stop - options.start
        active = options.rounds > 0 and span > 0
        self.refine_at = (
            {
                first + round(steps * (options.start + span * (k + 1) / options.rounds))
                for k in range(options.rounds)
            }
            if active
            else set()
        )
        self.reset_at = {first + round(steps * fraction) for fraction in options.reset}
        self.begin = first + round(steps * options.start)
        self.strategy = _CappedStrategy(
            grow_scale3d=options.split_scale,
            prune_opa=options.prune_opacity,
            prune_scale3d=options.prune_scale,
            refine_start_iter=-1,
            refine_stop_iter=NEVER,
            refine_every=NEVER,
            reset_every=NEVER,
        )
        self.strategy.share, self.strategy.max_splats = options.grow, options.max_splats
        self.state: dict[str, Any] = self.strategy.initialize_state(scene_scale=1.0)

    def watches(self, step: int) -> bool:
        """Whether the screen-space gradients of this step count."""
        return bool(self.refine_at) and self.begin <= step <= max(self.refine_at)

    def after(self, params: Params, optimizers: Optimizers, info: dict[str, Any], step: int) -> None:
        """Call once a step, after the optimisers; `info` is the render's, means2d with its gradient."""
        if self.watches(step):
            self.strategy._update_state(params, self.state, info, packed=False)
        if step in self.refine_at:
            self._refine(params, optimizers, step)
        if step in self.reset_at:
            reset_opa(params, optimizers, self.state, value=2.0 * self.options.prune_opacity)

    def _refine(self, params: Params, optimizers: Optimizers, step: int) -> None:
        seed = int(torch.randint(2**62, (), generator=rng(self.seed, step, "densify")))
        devices = [params["means"].device] if params["means"].is_cuda else []
        with torch.random.fork_rng(devices=devices):  # gsplat's split draws from the global generator
            torch.default_generator.manual_seed(seed)
            if devices:  # torch.manual_seed seeds every GPU of the machine
                torch.cuda.manual_seed(seed)
            self.strategy._grow_gs(params, optimizers, self.state, step)
            self._prune(params, optimizers)
        self.state["grad2d"].zero_()
        self.state["count"].zero_()

    def _prune(self, params: Params, optimizers: Optimizers) -> None:
        faint = params["opacities"].flatten().sigmoid() < self.options.prune_opacity
        large = params["scales"].exp().amax(dim=-1) > self.options.prune_scale
        gone = (faint | large).detach()
        if bool(gone.any()) and not bool(gone.all()):  # an empty cloud could never grow again
            remove(params=params, optimizers=optimizers, state=self.state, mask=gone)

    def state_dict(self) -> dict[str, Tensor]:
        return {key: value for key, value in self.state.items() if isinstance(value, Tensor)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.state.update({key: value.clone() for key, value in state.items()})
