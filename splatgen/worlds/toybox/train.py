"""Train the toybox's models: `python -m splatgen.worlds.toybox.train NAME`, NAME as in recipes.

Pictures are rendered on the fly and every step's data is a function of (seed, step), so a run that is
stopped and resumed sees what an uninterrupted one would have seen. The learning rate warms up, stays,
and falls linearly over the last quarter of `--steps`; raise or lower `--steps` when resuming.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from splatgen.runs.machine import machine_name
from splatgen.worlds.towers import MAX_TOKENS
from splatgen.worlds.toybox import weights_folder
from splatgen.worlds.toybox.figures import held_out_figures
from splatgen.worlds.toybox.losses import prior_loss, reward_loss
from splatgen.worlds.toybox.model import PriorConfig, PriorNet, config_json, reward_net
from splatgen.worlds.toybox.recipes import RECIPES, Recipe
from splatgen.worlds.training import Trainer, run, write_weights

log = logging.getLogger("splatgen.worlds.toybox")


def trainer(recipe: Recipe, device: torch.device) -> Trainer:
    """A model at its first step."""
    torch.manual_seed(recipe.seed)
    half = device.type == "cuda"
    if isinstance(recipe.net, PriorConfig):
        return Trainer(PriorNet(recipe.net), prior_loss, recipe, device, half=half)
    return Trainer(reward_net(recipe.net), reward_loss, recipe, device, half=half)


def export(trained: Trainer, folder: Path, name: str) -> None:
    """Write the averaged weights as fp16 safetensors, and the card."""
    recipe, device = trained.recipe, trained.device
    state = trained.averaged()
    prior = isinstance(recipe.net, PriorConfig)
    net = PriorNet(recipe.net) if prior else reward_net(recipe.net)
    net.load_state_dict({n: v.float() for n, v in state.items()})
    card: dict[str, Any] = {
        "kind": "prior" if prior else "reward",
        "config": config_json(recipe.net),
        "recipe": {k: v for k, v in asdict(recipe).items() if k != "net"},
        "command": f"python -m splatgen.worlds.toybox.train {name} --steps {recipe.steps}",
        "data": "splatgen.worlds.toybox.world, rendered on the fly, without grammar.held_out captions",
        "images": trained.step * recipe.batch,
        "steps": trained.step,
        "stages": trained.stages,
        "training_seconds": round(trained.seconds),
        "held_out": held_out_figures(net.to(device).eval(), recipe, device),
        "machine": machine_name(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in trained.names.values()),
        "max_tokens": MAX_TOKENS,
    }
    write_weights(folder, name, state, card)


def train(
    name: str, recipe: Recipe, *, work: Path, out: Path, device: torch.device, every: float = 60.0
) -> None:
    """Train to the recipe's last step, or until interrupted; resume what lies in work/name."""
    trained = trainer(recipe, device)
    run(trained, name, work / name, every)
    export(trained, out, name)
    log.info("%s: %d steps, weights in %s", name, trained.step, out)


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
