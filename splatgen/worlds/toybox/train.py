"""Train the toybox's models: `python -m splatgen.worlds.toybox.train NAME`, NAME as in recipes.

Pictures are rendered on the fly and every step's data is a function of (seed, step), so a run that is
stopped and resumed sees what an uninterrupted one would have seen. The learning rate warms up, stays,
and falls linearly over the last quarter of `--steps`; raise or lower `--steps` when resuming.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from splatgen.runs.machine import machine_name
from splatgen.worlds.toybox import weights_folder
from splatgen.worlds.toybox.figures import held_out_figures
from splatgen.worlds.toybox.losses import prior_loss, reward_loss
from splatgen.worlds.toybox.model import MAX_TOKENS, PriorConfig, PriorNet, RewardNet, config_json
from splatgen.worlds.toybox.recipes import RECIPES, Recipe

log = logging.getLogger("splatgen.worlds.toybox")

MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # AdamW's state of a parameter


def learning_rate(step: int, recipe: Recipe) -> float:
    """Warm-up, plateau, linear decay over the last quarter."""
    left = (recipe.steps - step) / (0.25 * recipe.steps)
    return recipe.lr * min(1.0, (step + 1) / recipe.warmup, max(left, 0.0))


class Trainer:
    """The state that survives a stop: weights, their average, Adam's moments and the step."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.prior = isinstance(recipe.net, PriorConfig)
        self.recipe, self.device, self.step, self.seconds = recipe, device, 0, 0.0
        self.stages = [(0, recipe.steps)]  # (first step, `--steps` from there on): what made the schedule
        self.net: nn.Module = (PriorNet if self.prior else RewardNet)(recipe.net).to(device)  # type: ignore[arg-type]
        self.names = dict(self.net.named_parameters())
        self.average = {name: p.detach().clone() for name, p in self.names.items()}
        self.optimizer = torch.optim.AdamW(
            self.names.values(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=True
        )
        self.loss: Callable[..., Tensor] = prior_loss if self.prior else reward_loss

    def update(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.recipe)
        bf16 = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
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
        return float(loss.detach())

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
        (folder / "next.safetensors").replace(folder / "state.safetensors")

    def resume(self, folder: Path) -> None:
        path = folder / "state.safetensors"
        if not path.is_file():
            return
        with safe_open(path, "pt") as file:
            meta = file.metadata()
        tensors = {name: value.to(self.device) for name, value in load_file(path).items()}
        with torch.no_grad():
            for name, p in self.names.items():
                p.copy_(tensors[f"net.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
                self.optimizer.state[p] = {key: tensors[f"{key}.{name}"] for key in MOMENTS}
        self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
        if "stages" in meta:
            self.stages = [(first, steps) for first, steps in json.loads(meta["stages"])]
        if self.stages[-1][1] != self.recipe.steps:
            self.stages.append((self.step, self.recipe.steps))

    def export(self, folder: Path, name: str) -> None:
        """Write the averaged weights as fp16 safetensors, and the card."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {n: self.average.get(n, v).half().contiguous() for n, v in self.net.state_dict().items()}
        net = (PriorNet if self.prior else RewardNet)(self.recipe.net).to(self.device)  # type: ignore[arg-type]
        net.load_state_dict({n: v.float() for n, v in state.items()})
        save_file(state, folder / f"{name}.safetensors")
        (folder / f"{name}.safetensors").chmod(0o644)  # safetensors makes it private
        card: dict[str, Any] = {
            "kind": "prior" if self.prior else "reward",
            "config": config_json(self.recipe.net),
            "recipe": {k: v for k, v in asdict(self.recipe).items() if k != "net"},
            "command": f"python -m splatgen.worlds.toybox.train {name} --steps {self.recipe.steps}",
            "data": "splatgen.worlds.toybox.world, rendered on the fly, without grammar.held_out captions",
            "images": self.step * self.recipe.batch,
            "steps": self.step,
            "stages": self.stages,
            "training_seconds": round(self.seconds),
            "held_out": held_out_figures(net.eval(), self.recipe, self.device),
            "machine": machine_name(),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "parameters": sum(p.numel() for p in self.names.values()),
            "max_tokens": MAX_TOKENS,
        }
        (folder / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")


def train(
    name: str, recipe: Recipe, *, work: Path, out: Path, device: torch.device, every: float = 60.0
) -> None:
    """Train to the recipe's last step, or until interrupted; resume what lies in work/name."""
    trainer = Trainer(recipe, device)
    trainer.resume(work / name)
    stop = False

    def request(*_: object) -> None:
        nonlocal stop
        stop = True

    previous = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    saved = tick = time.monotonic()
    mean, begun = None, trainer.step
    while trainer.step < recipe.steps and not stop:
        loss = trainer.update()
        mean = loss if mean is None else 0.98 * mean + 0.02 * loss
        now = time.monotonic()
        trainer.seconds += now - tick
        tick = now
        if trainer.step % 100 == 0:
            speed = (trainer.step - begun) * recipe.batch
            log.info(
                "%s step %d loss %.4f, %d images so far here, %.0f s",
                name,
                trainer.step,
                mean,
                speed,
                trainer.seconds,
            )
        if now - saved > every:
            trainer.save(work / name)
            saved = now
    trainer.save(work / name)
    for which, handler in previous.items():
        signal.signal(which, handler)
    trainer.export(out, name)
    log.info("%s: %d steps, weights in %s", name, trainer.step, out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=list(RECIPES))
    parser.add_argument("--steps", type=int, help="total steps, resumed ones included")
    parser.add_argument(
        "--work", type=Path, default=Path("training/toybox"), help="checkpoints (default %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=weights_folder(), help="finished weights (default: the package)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = RECIPES[args.name]
    if args.steps:
        recipe = replace(recipe, steps=args.steps)
    train(args.name, recipe, work=args.work, out=args.out, device=torch.device(args.device))


if __name__ == "__main__":
    main()
