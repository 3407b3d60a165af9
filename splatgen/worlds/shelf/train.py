"""Train the shelf's models: `python -m splatgen.worlds.shelf.train NAME`, NAME as in recipes.

It needs the shelf's models (SPLATGEN_SHELF, or a folder `shelf` beside the repository), and `prior` the
trained autoencoder in --out. Stop it with Ctrl-C or SIGTERM and start it again with the same words: it goes
on. Raise or lower `--steps` when resuming. First `autoencoder`, then `prior`; `reward` and `judge` any time.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from splatgen.runs.machine import machine_name
from splatgen.worlds.prefetching import prefetched
from splatgen.worlds.quantised import quantised
from splatgen.worlds.shelf import weights_folder
from splatgen.worlds.shelf.catalogue import catalogue
from splatgen.worlds.shelf.figures import autoencoder_figures, prior_figures, reward_figures
from splatgen.worlds.shelf.latents import standardise, statistics
from splatgen.worlds.shelf.losses import autoencoder_loss, drawn, prior_loss
from splatgen.worlds.shelf.model import (
    FOLD,
    AutoencoderConfig,
    PriorConfig,
    PriorNet,
    autoencoder,
    load_net,
    reward_net,
)
from splatgen.worlds.shelf.recipes import RECIPES, Recipe
from splatgen.worlds.shelf.reward_losses import asked, reward_loss
from splatgen.worlds.shelf.scenes import shelf
from splatgen.worlds.towers import RewardConfig
from splatgen.worlds.training import Trainer, fast_half, run, write_weights

log = logging.getLogger("splatgen.worlds.shelf")


def network(config: AutoencoderConfig | PriorConfig | RewardConfig) -> Any:
    """What a recipe's sizes describe, with random weights."""
    if isinstance(config, AutoencoderConfig):
        return autoencoder(config)
    return PriorNet(config) if isinstance(config, PriorConfig) else reward_net(config)


def kind(recipe: Recipe) -> str:
    """What a card calls it."""
    if isinstance(recipe.net, AutoencoderConfig):
        return "autoencoder"
    return "prior" if isinstance(recipe.net, PriorConfig) else "reward"


def trainer(recipe: Recipe, device: torch.device, out: Path, workers: int = 0) -> Trainer:
    """A model at its first step; out is where a prior's autoencoder lies; so many workers render."""
    torch.manual_seed(recipe.seed)
    net = network(recipe.net).to(memory_format=torch.channels_last)
    half, what = fast_half(device), kind(recipe)
    if what == "reward":
        ask = prefetched(partial(asked, recipe, net.config.size), workers)
        return Trainer(net, partial(reward_loss, draw=ask), recipe, device, half=half)
    if what == "autoencoder":
        return Trainer(net, autoencoder_loss, recipe, device, half=half)
    if half and device.type == "cpu":  # twice as fast there as torch's own attention in bfloat16
        from diffusers.models.attention_processor import AttnProcessor

        net.unet.set_attn_processor(AttnProcessor())
    vae = load_net(out, "autoencoder", "autoencoder").to(device, memory_format=torch.channels_last)
    draw = prefetched(partial(drawn, recipe, vae.config.sample_size * FOLD), workers)
    loss = partial(prior_loss, vae, draw=draw)
    return Trainer(net, loss, recipe, device, half=half, decays=is_matrix)


def is_matrix(name: str, p: Tensor) -> bool:
    """Whether a prior's parameter decays: matrices and kernels do; embeddings, biases and norms don't."""
    return p.ndim > 1 and "embedding" not in name


def export(trained: Trainer, folder: Path, name: str, before: dict[str, Any] | None = None) -> None:
    """Write the averaged weights as safetensors, and the card; before: that of the weights it began with."""
    recipe, device, what = trained.recipe, trained.device, kind(trained.recipe)
    net = network(recipe.net)
    net.load_state_dict({n: v.float() for n, v in trained.averaged().items()})
    net.to(device).eval()
    if what == "autoencoder":
        standardise(net, *statistics(net, recipe, device))
        figures = autoencoder_figures(net, recipe, device)
    elif what == "prior":
        vae = load_net(folder, "autoencoder", "autoencoder").to(device)
        figures = prior_figures(vae, net, recipe, device)
    else:
        figures = reward_figures(net, recipe, device)
    written = card(trained, name, figures) | ({} if before is None else {"began_with": before})
    write_weights(folder, name, quantised(net.state_dict()), written)


def card(trained: Trainer, name: str, figures: dict[str, float]) -> dict[str, Any]:
    """What a model is, what it was trained on and with, and how well it does."""
    recipe, device = trained.recipe, trained.device
    limit = "" if recipe.seconds is None else f" --seconds {recipe.seconds:g}"
    return {
        "kind": kind(recipe),
        "config": asdict(recipe.net),
        "recipe": {k: v for k, v in asdict(recipe).items() if k != "net"},
        "command": f"python -m splatgen.worlds.shelf.train {name} --steps {recipe.steps}{limit}",
        "data": "splatgen.worlds.shelf.scenes, rendered on the fly, without sampling.held_out captions",
        "models": licences(),
        "images": trained.step * recipe.batch,
        "steps": trained.step,
        "stages": trained.stages,
        "training_seconds": round(trained.seconds),
        "held_out": figures,
        "machine": machine_name(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in trained.names.values()),
    }


def origin(card: Path) -> dict[str, Any]:
    """How much training is in weights, by their card."""
    found = json.loads(card.read_text(encoding="utf-8"))
    return {key: found[key] for key in ("steps", "images", "device", "began_with") if key in found}


def licences() -> dict[str, dict[str, Any]]:
    """The models that were trained on, by the repository they are from, with the licence as read there."""
    found: dict[str, dict[str, Any]] = {}
    for noun in catalogue().nouns.values():
        entry = found.setdefault(noun.model.repository, {"licence": noun.model.licence, "files": []})
        entry["files"].append(noun.model.file)
    return found


def train(
    name: str,
    recipe: Recipe,
    *,
    work: Path,
    out: Path,
    device: torch.device,
    every: float = 60.0,
    warm: bool = False,
    workers: int = 0,
) -> None:
    """Train to the recipe's end, or until interrupted; resume what lies in work/name.

    warm starts from the weights in `out`, where nothing lies there yet.
    """
    shelf()  # without models there is nothing to train on
    trained = trainer(recipe, device, out, workers)
    before = None
    if warm:
        trained.start_from(load_net(out, name, kind(recipe)).state_dict())
        before = origin(out / f"{name}.json")
    run(trained, name, work / name, every)
    export(trained, out, name, before)
    log.info("%s: %d steps, weights in %s", name, trained.step, out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=list(RECIPES))
    parser.add_argument("--steps", type=int, help="total steps, resumed ones included")
    parser.add_argument(
        "--work", type=Path, default=Path("training/shelf"), help="checkpoints (default %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=weights_folder(), help="finished weights (default: the package)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--warm", action="store_true", help="start from the finished weights, not from none")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--seconds", type=float, help="of training, resumed ones included, at most")
    parser.add_argument("--workers", type=int, default=0, help="processes that render")
    args = parser.parse_args()
    if args.workers and args.name == "autoencoder":
        parser.error("--workers: the autoencoder's training renders in its own process; leave it out")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = RECIPES[args.name]
    if args.steps:
        recipe = replace(recipe, steps=args.steps)
    if args.seconds:
        recipe = replace(recipe, seconds=args.seconds)
    train(
        args.name,
        recipe,
        work=args.work,
        out=args.out,
        device=torch.device(args.device),
        warm=args.warm,
        workers=args.workers,
    )


if __name__ == "__main__":
    main()
