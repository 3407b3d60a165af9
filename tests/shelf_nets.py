"""The shelf's networks, tiny: real parts with random weights, and their files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from splatgen.worlds.shelf import model
from splatgen.worlds.towers import RewardConfig

AUTOENCODER = model.AutoencoderConfig(size=16, channels=(8, 16), latents=8)
PRIOR = model.PriorConfig(
    side=4, latents=8, channels=(16, 32), text_width=16, text_layers=1, heads=2, rays=True
)
REWARD = RewardConfig(size=16, channels=(16, 24), embed=16, text_width=16, text_layers=1, heads=2, patch=2)
SIZES: dict[str, tuple[str, Any]] = {
    "autoencoder": ("autoencoder", AUTOENCODER),
    "prior": ("prior", PRIOR),
    "reward": ("reward", REWARD),
    "judge": ("reward", REWARD),
}


def net(name: str) -> Any:
    """A network with weights of its own, frozen."""
    kind, sizes = SIZES[name]
    torch.manual_seed(list(SIZES).index(name))
    found = model.NETS[kind][1](sizes)
    return found.eval().requires_grad_(False)


def write(folder: Path, *names: str) -> Path:
    """Weights and cards, as a training leaves them; of every network, or of those named."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or SIZES:
        state = {key: value.half().contiguous() for key, value in net(name).state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
        card = {"kind": SIZES[name][0], "config": asdict(SIZES[name][1])}
        if SIZES[name][0] == "reward":
            card["held_out"] = {"score_mean": 0.5, "score_spread": 0.25}
        (folder / f"{name}.json").write_text(json.dumps(card))
    return folder
