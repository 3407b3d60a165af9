"""Variational score distillation.

Shapes: B views, K candidates, M of them kept, C x h x w the prior's space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from splatgen.config import VSDOptions
from splatgen.guidance.conditioning import take
from splatgen.guidance.denoiser import Guided, amplitudes
from splatgen.guidance.moment import Moment
from splatgen.guidance.scores.base import LATEST, Metrics, Noised, Score, gaussian
from splatgen.priors import AdaptablePrior, Conditioning, Prior
from splatgen.runs.rng import rng
from splatgen.scene.cameras import Cameras
from splatgen.scene.uploads import upload, upload_together

TOLD = "told"  # rides along with the conditioning, so that it is batched with it


class VSD(Score):
    """Variational score distillation (Wang et al. 2023, ProlificDreamer, eq. 9 and algorithm 1).

    G = w(t) (e - e_lora), where e_lora is a LoRA copy of the denoiser that is told the camera and is trained
    beside, one step a step, on the renders: |e_lora(alpha x + sigma n', t') - n'|^2 with t' uniform and n'
    fresh (on the velocity for velocity models, which weighs by 1/alpha^2).

    threestudio copies another checkpoint and adds a random camera embedding, so that its copy is not the
    prior at the start; it also evaluates the copy with and without the camera, at a guidance scale of 1,
    where the second does nothing. Here an untrained copy is the prior, and G is CSD's.
    """

    asks = True

    def __init__(self, options: VSDOptions, prior: Prior, seed: int) -> None:
        self.options = options
        self.adapter = cast("AdaptablePrior", prior).adapter(options.rank, rng(seed, 0, "lora"))
        self.parameters = self.adapter.parameters()
        if options.start == "normal":
            start_normal(self.parameters, options.rank, rng(seed, 0, "lora start"))
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=options.lr,
            betas=options.betas,
            eps=options.eps,
            weight_decay=options.weight_decay,
        )

    def noises(self, moment: Moment, count: int) -> Noised:
        return Noised(noise=gaussian(moment, count))

    def baseline(self, moment: Moment, noised: Noised, guided: Guided) -> Tensor:
        x_t = moment.noised(noised.noise)
        condition, cameras, t = moment.repeated(self._prompt(moment), len(x_t))
        condition = {**condition, TOLD: torch.full_like(t, float(self.options.camera))}
        with torch.no_grad(), self.adapter.enabled():
            e = moment.denoiser.raw(x_t.flatten(0, 1), t, condition, cameras, self._predict)
        return (
            e.view(x_t.shape) + guided.adjustment
        )  # the copy is not clamped: neither is what it is taken from

    def learn(self, moment: Moment) -> Metrics:
        generator = moment.rng("lora")
        x, items = moment.x, len(moment.items(moment.times))
        t = moment.views(torch.rand(items, generator=generator).clamp(0.001, LATEST)).to(moment.times)
        told = moment.views((torch.rand(items, generator=generator) >= self.options.camera_dropout).to(t))
        noise = torch.randn(x.shape, generator=generator).to(x.dtype)
        t, told, noise = upload_together((t, told, noise), x.device)
        alpha, sigma = amplitudes(moment.prior, t)
        condition, cameras, _ = moment.repeated(self._prompt(moment), 1)
        condition = {**condition, TOLD: told * float(self.options.camera)}
        x_t = alpha * x + sigma * noise
        shrink = alpha if moment.prior.prediction == "velocity" else torch.ones_like(alpha)

        def part(rows: Tensor) -> tuple[Tensor, ...]:
            """The share of some views in the loss, and in its gradient."""
            on = upload(rows, x.device)
            e = moment.denoiser.raw(x_t[on], t[on], take(condition, on), cameras[rows], self._predict)
            loss = mse_loss(e / shrink[on], noise[on] / shrink[on]) * (len(rows) / len(x))
            return loss.detach(), *torch.autograd.grad(loss, list(self.parameters.values()))

        with torch.enable_grad(), self.adapter.enabled():
            parts = [part(rows) for rows in moment.denoiser.parts(torch.arange(len(x)))]
            loss, *gradients = (sum(z[1:], z[0]) for z in zip(*parts, strict=True))
        if not torch.isfinite(loss):  # a render that is not finite must not spoil the copy
            return {"score/lora_loss": float("nan")}
        for p, gradient in zip(self.parameters.values(), gradients, strict=True):
            p.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"score/lora_loss": loss}

    def _prompt(self, moment: Moment) -> Conditioning:
        return (moment.conditions if self.options.prompt == "view" else moment.plain()).positive

    def _predict(self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras) -> Tensor:
        rest = {name: value for name, value in condition.items() if name != TOLD}
        return self.adapter.predict(x_t, t, rest, cameras, condition[TOLD])

    def state_dict(self) -> dict[str, Any]:
        weights = {name: p.detach() for name, p in self.parameters.items()}
        return {"weights": weights, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])


def start_normal(parameters: Mapping[str, Tensor], rank: int, generator: torch.Generator) -> None:
    """First matrices of LoRA from N(0, 1 / rank^2), as diffusers' LoRALinearLayer, which threestudio takes.

    torch's rule for linear layers is U(-1, 1) / sqrt(width): at rank 4 and a width of 320 a deviation of
    0.032 in place of 0.25, by which a step of the second matrices, zero at first, moves the prediction.
    """
    for name, p in parameters.items():
        if "lora_A" in name:
            p.data.copy_(torch.randn(p.shape, generator=generator) / rank)
