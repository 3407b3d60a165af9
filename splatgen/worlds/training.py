"""Training an embedded world's models: a state that survives a stop, and the loop around it.

Every step's data is a function of (seed, step), so a run that is stopped and resumed sees what an
uninterrupted one would have seen. The learning rate warms up, stays, and falls linearly at the end.
"""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

log = logging.getLogger("splatgen.worlds")

MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # AdamW's state of a parameter
STATE = "state.safetensors"


class Recipe(Protocol):
    """What a training is asked for, whatever the model; batch counts images."""

    @property
    def seed(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def ema(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def fall(self) -> float: ...
    @property
    def seconds(self) -> float | None: ...


def learning_rate(step: int, recipe: Recipe, seconds: float = 0.0) -> float:
    """Warm-up, plateau, linear decay over the last share `fall` of the steps, or of the recipe's seconds."""
    left = 1.0 - step / recipe.steps
    if recipe.seconds is not None:
        left = min(left, 1.0 - seconds / recipe.seconds)
    return recipe.lr * min(1.0, (step + 1) / recipe.warmup, max(left / recipe.fall, 0.0))


def fast_half(device: torch.device) -> bool:
    """Whether bfloat16 is quicker than float32: on CUDA, and on CPUs that have instructions for it."""
    if device.type == "cuda":
        return True
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


class Trainer:
    """The state that survives a stop: weights, their average, Adam's moments and the step.

    loss is called with (net, recipe, step, device); half computes it in bfloat16; decays says which
    parameters the weight decay is for.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[..., Tensor],
        recipe: Any,  # a Recipe, with what its loss reads
        device: torch.device,
        *,
        half: bool = False,
        decays: Callable[[str, Tensor], bool] = lambda name, p: True,
    ) -> None:
        self.recipe, self.device, self.step, self.seconds = recipe, device, 0, 0.0
        self.stages = [(0, recipe.steps)]  # (first step, `--steps` from there on): what made the schedule
        self.net = net.to(device)
        self.loss, self.half = loss, half
        self.names = dict(self.net.named_parameters())
        self.average = {name: p.detach().clone() for name, p in self.names.items()}
        falling = [p for n, p in self.names.items() if decays(n, p)]
        others = [p for n, p in self.names.items() if not decays(n, p)]
        groups: list[dict[str, Any]] = [
            {"params": falling, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=recipe.lr, betas=(0.9, 0.99), fused=True
        )

    @property
    def done(self) -> bool:
        """Whether the recipe's steps or seconds are over."""
        steps, seconds = self.recipe.steps, self.recipe.seconds
        return bool(self.step >= steps or (seconds is not None and self.seconds >= seconds))

    def update(self) -> Tensor:
        """One step; returns its loss, for which nobody has waited."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.recipe, self.seconds)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            loss = self.loss(self.net, self.recipe, self.step, self.device)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.names.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        keep = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        names = list(self.names)
        with torch.no_grad():
            torch._foreach_lerp_([self.average[n] for n in names], [self.names[n] for n in names], 1.0 - keep)
        return loss.detach()

    def save(self, folder: Path) -> None:
        """Write the state beside the old one and rename: a kill at any moment loses one interval."""
        if self.step == 0:
            return  # Adam has no moments yet, and nothing would be lost
        folder.mkdir(parents=True, exist_ok=True)
        moments = self.optimizer.state
        tensors = {f"average.{n}": p for n, p in self.average.items()}
        for name, p in self.names.items():
            tensors[f"net.{name}"] = p.detach()
            for key in MOMENTS:
                tensors[f"{key}.{name}"] = moments[p][key]
        stages = json.dumps(self.stages)
        meta = {"step": str(self.step), "seconds": str(self.seconds), "stages": stages}
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "next.safetensors", metadata=meta)
        (folder / "next.safetensors").replace(folder / STATE)

    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Take weights that were trained before; Adam and the schedule begin anew."""
        with torch.no_grad():
            for name, p in self.names.items():
                p.copy_(state[name])
                self.average[name].copy_(state[name])

    def resume(self, folder: Path) -> None:
        """Go on where a state in the folder stopped; without one nothing changes."""
        path = folder / STATE
        if not path.is_file():
            return
        with safe_open(path, "pt") as file:
            meta = file.metadata()
        tensors = {name: value.to(self.device) for name, value in load_file(path).items()}
        with torch.no_grad():
            for name, p in self.names.items():
                p.copy_(tensors[f"net.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
                self.optimizer.state[p] = {key: _laid_out(tensors[f"{key}.{name}"], p) for key in MOMENTS}
        self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
        if "stages" in meta:
            self.stages = [(first, steps) for first, steps in json.loads(meta["stages"])]
        if self.stages[-1][1] != self.recipe.steps:
            self.stages.append((self.step, self.recipe.steps))

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights as they are exported: fp16, buffers included."""
        state = self.net.state_dict()
        return {n: self.average.get(n, v).detach().half().contiguous() for n, v in state.items()}


def _laid_out(moment: Tensor, p: Tensor) -> Tensor:
    """A moment in the memory format of its parameter, for the fused step goes through both in order."""
    return torch.empty_like(p).copy_(moment) if moment.shape == p.shape else moment


def run(trainer: Trainer, name: str, work: Path, every: float = 60.0) -> None:
    """Train to the recipe's end, or until interrupted; resume what lies in `work`, save into it."""
    trainer.resume(work)
    recipe = trainer.recipe
    stop = False

    def request(*_: object) -> None:
        nonlocal stop
        stop = True

    previous = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    saved = tick = time.monotonic()
    mean, begun, before = None, trainer.step, trainer.seconds
    while not trainer.done and not stop:
        loss = trainer.update()
        mean = loss if mean is None else mean.lerp(loss, 0.02)
        now = time.monotonic()
        trainer.seconds += now - tick
        tick = now
        if trainer.step % 100 == 0:
            seen = (trainer.step - begun) * recipe.batch
            rate = seen / max(trainer.seconds - before, 1e-9)
            done = f"{name} step {trainer.step} of {recipe.steps} loss {float(mean):.4f}"
            log.info("%s, %.0f images/s, %.0f s", done, rate, trainer.seconds)
        if now - saved > every:
            trainer.save(work)
            saved = now
    trainer.save(work)
    for which, handler in previous.items():
        signal.signal(which, handler)


def write_weights(folder: Path, name: str, state: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Weights as safetensors, and their card as JSON beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / f"{name}.safetensors")
    (folder / f"{name}.safetensors").chmod(0o644)  # safetensors makes it private
    (folder / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")
