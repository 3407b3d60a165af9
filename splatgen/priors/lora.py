"""A trainable copy of a denoiser of diffusers: LoRA on its attention, and an embedding of the camera.

Variational score distillation (Wang et al. 2023, section 3.3) trains such a copy on the renders. Here it is
the same checkpoint with matrices that start at zero, and the last layer of the camera's embedding starts at
zero too, so an untrained copy predicts exactly what the prior does. (threestudio takes another checkpoint
and a randomly initialised camera embedding: there it does not.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from splatgen.models.paging import begin, home
from splatgen.priors import Conditioning
from splatgen.scene.cameras import Cameras
from splatgen.scene.uploads import upload

NAME = "vsd"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]

Predict = Callable[[Tensor, Tensor, Conditioning, Cameras], Tensor]


class LoraAdapter:
    """Wraps a prior's own `predict`, which must run `unet`, with the copy's weights switched on."""

    def __init__(self, unet: nn.Module, predict: Predict, *, rank: int, generator: torch.Generator) -> None:
        from diffusers.models.embeddings import TimestepEmbedding
        from peft import LoraConfig

        self._unet, self._predict = unet, predict
        if NAME in getattr(unet, "peft_config", {}):
            unet.delete_adapters(NAME)  # type: ignore[operator]
        device = home(unet)
        begin(unet)  # the copy's weights are made where the others are
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            # peft initialises from the global generators; ours comes below
            unet.add_adapter(  # type: ignore[operator]
                LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS), adapter_name=NAME
            )
            width = self._time_embedding().linear_2.out_features  # type: ignore[union-attr]
            self._camera = TimestepEmbedding(16, width).to(device)
        self._added: Tensor | None = None  # what the time embedding gets on top, while a call runs
        self._initialise(generator)
        unet.disable_adapters()  # type: ignore[operator]

    def _time_embedding(self) -> nn.Module:
        """Where what a copy knows of its camera is added: a UNet's, or that of Stable Diffusion 3."""
        found = getattr(self._unet, "time_embedding", None)
        if found is None:
            found = self._unet.time_text_embed.timestep_embedder  # type: ignore[union-attr]
        return cast("nn.Module", found)

    def _initialise(self, generator: torch.Generator) -> None:
        for name, p in self.parameters().items():
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))  # half would lose small steps
            if "lora_B" in name or "linear_2" in name:
                nn.init.zeros_(p)
            else:  # torch's own rule for linear layers
                bound = 1.0 / math.sqrt(p.shape[-1])
                p.data.copy_(bound * (2.0 * torch.rand(p.shape, generator=generator) - 1.0))

    def parameters(self) -> dict[str, nn.Parameter]:
        lora = {name: p for name, p in self._unet.named_parameters() if f".{NAME}." in name}
        return {**lora, **{f"camera.{name}": p for name, p in self._camera.named_parameters()}}

    @contextmanager
    def enabled(self) -> Iterator[None]:
        hook = self._time_embedding().register_forward_hook(self._add)
        self._unet.enable_adapters()  # type: ignore[operator]
        try:
            yield
        finally:
            self._unet.disable_adapters()  # type: ignore[operator]
            hook.remove()

    def _add(self, module: nn.Module, inputs: object, out: Tensor) -> Tensor:
        if self._added is None:
            raise RuntimeError("the copy is switched on: call the adapter's predict, not the prior's")
        return out + self._added.to(out.dtype)

    def predict(
        self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras, told: Tensor
    ) -> Tensor:
        first = self._camera.linear_1.weight
        pose = upload(cameras.c2w.flatten(1), first.device).to(first.dtype)  # [B, 16]
        self._added = self._camera(pose) * told.to(pose)[:, None]
        try:
            return self._predict(x_t, t, condition, cameras)
        finally:
            self._added = None
