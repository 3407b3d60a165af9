"""Train the toybox's models: `python -m splatgen.toybox.train prior|reward|judge|mini-prior|mini-reward`.

Pictures are rendered on the fly and every step's data is a function of (seed, step), so a run that is
stopped and resumed sees what an uninterrupted one would have seen. The learning rate warms up, stays,
and falls linearly over the last quarter of `--steps`; raise or lower `--steps` when resuming.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import random
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from splatgen.backgrounds import random_backgrounds
from splatgen.cameras import Cameras, orbit
from splatgen.prompts import VIEW_WORDS, view_word
from splatgen.rng import rng
from splatgen.toybox import weights_folder, world
from splatgen.toybox.grammar import Caption
from splatgen.toybox.model import (
    MAX_TOKENS,
    PriorConfig,
    PriorNet,
    RewardConfig,
    RewardNet,
    camera_features,
    config_json,
    tokenize,
)
from splatgen.toybox.sampling import draw, hard_negatives, with_view

log = logging.getLogger("splatgen.toybox")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a model is trained with; batch counts images."""

    net: PriorConfig | RewardConfig
    seed: int
    steps: int
    batch: int = 32
    lr: float = 1.2e-3
    warmup: int = 100
    ema: float = 0.999
    weight_decay: float = 1e-3
    negatives: int = 5  # hard captions an image (reward models)


RECIPES: dict[str, Recipe] = {
    "prior": Recipe(net=PriorConfig(), seed=1, steps=20_000),
    "reward": Recipe(net=RewardConfig(), seed=2, steps=3_000, batch=64),
    "judge": Recipe(
        net=RewardConfig(channels=(40, 96, 192), embed=128, text_width=128), seed=3, steps=4_000, batch=64
    ),
    "mini-prior": Recipe(
        net=PriorConfig(size=16, channels=(24, 32), text_width=32, text_layers=1, heads=2),
        seed=4,
        steps=6_000,
    ),
    "mini-reward": Recipe(
        net=RewardConfig(size=16, channels=(16, 32), embed=32, text_width=32, text_layers=1, heads=2),
        seed=5,
        steps=4_000,
        batch=64,
    ),
}


def learning_rate(step: int, recipe: Recipe) -> float:
    """Warm-up, plateau, linear decay over the last quarter."""
    left = (recipe.steps - step) / (0.25 * recipe.steps)
    return recipe.lr * min(1.0, (step + 1) / recipe.warmup, max(left, 0.0))


def scenes(recipe: Recipe, step: int, cameras: Cameras) -> tuple[list[Caption], random.Random, Tensor]:
    """Captions, the source of further choices, and pictures [B, 3, S, S] in 0..1."""
    source = random.Random(f"{recipe.seed}/{step}")
    captions = draw(source, len(cameras))
    background = random_backgrounds(rng(recipe.seed, step, "background"), len(cameras))
    images = world.ground_truth(captions, cameras, background.to(cameras.K.device), supersample=2).rgb
    return captions, source, images


def prior_loss(net: PriorNet, recipe: Recipe, step: int, device: torch.device) -> Tensor:
    """Mean squared error of v = alpha eps - sigma x0 (Salimans and Ho 2022), t stratified over the batch."""
    b = recipe.batch
    cameras = world.random_cameras(rng(recipe.seed, step, "cameras"), b, net.config.size).to(device)
    captions, source, images = scenes(recipe, step, cameras)
    texts, seen = [], []
    for n, caption in enumerate(captions):
        word = (
            view_word(float(cameras.azimuth[n]), float(cameras.elevation[n]))
            if source.random() < 0.85
            else None
        )
        texts.append("" if source.random() < 0.1 else with_view(str(caption), word))
        seen.append(float(source.random() < 0.6))
    states, pooled = net.encode_text(tokenize(texts).to(device))
    camera = camera_features(cameras.azimuth, cameras.elevation) * torch.tensor(seen, device=device)[:, None]
    g = rng(recipe.seed, step, "noise")
    t = ((torch.arange(b) + torch.rand(b, generator=g)) / b).clamp(1e-3, 1 - 1e-3).to(device)
    noise = torch.randn(images.shape, generator=g).to(device)
    alpha, sigma = (f(math.pi / 2 * t)[:, None, None, None] for f in (torch.cos, torch.sin))
    x0 = 2.0 * images - 1.0
    v = net(alpha * x0 + sigma * noise, t, states, pooled, camera)
    error: Tensor = v - (alpha * noise - sigma * x0)
    return error.square().mean()


def degrade(images: Tensor, source: random.Random, generator: torch.Generator) -> Tensor:
    """Blur, noise and contrast as one-step estimates and unfinished splats have them."""
    b, s = len(images), images.shape[-1]
    soft = interpolate(avg_pool2d(images, source.choice([2, 4])), size=(s, s), mode="bilinear")
    u = torch.rand(5, b, 1, 1, 1, generator=generator).to(images.device)
    images = torch.lerp(images, soft, u[0] * (u[1] < 0.5))
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    images = images + 0.15 * u[2] * (u[3] < 0.5) * noise
    return (0.5 + (images - 0.5) * (0.8 + 0.35 * u[4])).clamp(0.0, 1.0)


def reward_loss(net: RewardNet, recipe: Recipe, step: int, device: torch.device) -> Tensor:
    """InfoNCE of each picture against the batch's captions and its own hard negatives, and of captions
    against the batch's pictures."""
    b, k = recipe.batch, recipe.negatives
    seen = world.random_cameras(rng(recipe.seed, step, "cameras"), b, net.config.size)
    u = torch.rand(b, generator=rng(recipe.seed, step, "distance"))
    cameras = orbit(seen.azimuth, seen.elevation, size=net.config.size, distance=2.3 + 0.5 * u).to(device)
    captions, source, images = scenes(recipe, step, cameras)
    images = degrade(images, source, rng(recipe.seed, step, "degrade"))
    positive: list[str] = []
    negative: list[str] = []
    for n, caption in enumerate(captions):
        azimuth = float(cameras.azimuth[n])
        word = view_word(azimuth, float(cameras.elevation[n])) if source.random() < 0.5 else None
        visible = abs((azimuth + 180.0) % 360.0 - 180.0) < 60.0
        positive.append(with_view(str(caption), word))
        others = hard_negatives(
            caption,
            source,
            k - (word is not None),
            front_visible=visible,
            order_visible=word in ("front", "back"),  # from a side, and without a word, left may be right
            unseen=False,
        )
        negative += [with_view(str(other), word) for other in others]
        if word is not None:
            wrong = source.choice([w for w in VIEW_WORDS if w != word])
            negative.append(with_view(str(caption), wrong))
    image = net.embed_images(images)  # [B, E]
    text = net.embed_texts(tokenize(positive + negative).to(device))
    scale = net.log_scale.clamp(max=4.0).exp()
    same = torch.tensor([[p == q for q in positive] for p in positive], device=device)
    same &= ~torch.eye(b, dtype=torch.bool, device=device)
    batch = (scale * image @ text[:b].T).masked_fill(same, -1e4)  # [B, B] a repeated caption is no negative
    hard = scale * torch.einsum("be,bke->bk", image, text[b:].view(b, k, -1))
    target = torch.arange(b, device=device)
    return 0.5 * cross_entropy(torch.cat([batch, hard], 1), target) + 0.5 * cross_entropy(batch.T, target)


class Trainer:
    """The state that survives a stop: weights, their average, Adam's moments and the step."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        prior = isinstance(recipe.net, PriorConfig)
        self.recipe, self.device, self.step, self.seconds = recipe, device, 0, 0.0
        self.net: nn.Module = (PriorNet(recipe.net) if prior else RewardNet(recipe.net)).to(device)  # type: ignore[arg-type]
        self.names = dict(self.net.named_parameters())
        self.average = {name: p.detach().clone() for name, p in self.names.items()}
        self.optimizer = torch.optim.AdamW(
            self.names.values(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=True
        )
        self.loss: Callable[..., Tensor] = prior_loss if prior else reward_loss

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
        folder.mkdir(parents=True, exist_ok=True)
        moments = self.optimizer.state
        tensors = {f"average.{n}": p for n, p in self.average.items()}
        for name, p in self.names.items():
            tensors[f"net.{name}"] = p.detach()
            for key in ("exp_avg", "exp_avg_sq", "step"):
                tensors[f"{key}.{name}"] = moments[p][key]
        meta = {"step": str(self.step), "seconds": str(self.seconds)}
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "next.safetensors", metadata=meta)
        (folder / "next.safetensors").replace(folder / "state.safetensors")

    def resume(self, folder: Path) -> None:
        from safetensors import safe_open

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
                self.optimizer.state[p] = {key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[p]["step"] = (
                    tensors[f"step.{name}"].cpu() if self.device.type == "cpu" else tensors[f"step.{name}"]
                )
        self.step, self.seconds = int(meta["step"]), float(meta["seconds"])

    def export(self, folder: Path, name: str) -> None:
        """Write the averaged weights as fp16 safetensors, and the card."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {n: self.average.get(n, v).half().contiguous() for n, v in self.net.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
        (folder / f"{name}.safetensors").chmod(0o644)  # safetensors makes it private
        card: dict[str, Any] = {
            "kind": "prior" if isinstance(self.recipe.net, PriorConfig) else "reward",
            "config": config_json(self.recipe.net),
            "recipe": {k: v for k, v in asdict(self.recipe).items() if k != "net"},
            "command": f"python -m splatgen.toybox.train {name} --steps {self.recipe.steps}",
            "data": "splatgen.toybox.world, rendered on the fly, without grammar.held_out captions",
            "images": self.step * self.recipe.batch,
            "steps": self.step,
            "training_seconds": round(self.seconds),
            "machine": platform.processor() or platform.machine(),
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
        "--work", type=Path, default=Path("work/toybox"), help="checkpoints (default %(default)s)"
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
