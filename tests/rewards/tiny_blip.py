"""Files as ImageReward and Reward3D publish them, with few random weights.

Names and shapes are written down here as the packages' own classes have them, so that the code under test is
not asked what it expects. SIDE, WIDTH and the rest are small; the head widths of attention are published.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from splatgen.runs.rng import rng

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "blue",
    "cube",
    "sphere",
    "of",
    ",",
    "view",
)
VOCABULARY = [*WORDS, *(letter for letter in LETTERS if letter not in WORDS), *(f"##{x}" for x in LETTERS)]
MED = {"num_attention_heads": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "encoder_width": 768}

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, inner: int, outer: int) -> Shapes:
    return {f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def vision(width: int, layers: int, side: int, patch: int) -> Shapes:
    """timm's vision transformer."""
    found: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, (side // patch) ** 2 + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        **norm("norm", width),
    }
    for n in range(layers):
        found |= norm(f"blocks.{n}.norm1", width) | norm(f"blocks.{n}.norm2", width)
        found |= linear(f"blocks.{n}.attn.qkv", width, 3 * width)
        found |= linear(f"blocks.{n}.attn.proj", width, width)
        found |= linear(f"blocks.{n}.mlp.fc1", width, 4 * width)
        found |= linear(f"blocks.{n}.mlp.fc2", 4 * width, width)
    return found


def text(width: int, layers: int, words: int, seen: int) -> Shapes:
    """BERT with cross-attention to `seen` features of a picture."""
    found: Shapes = {
        "embeddings.position_ids": (1, 512),
        "embeddings.word_embeddings.weight": (words, width),
        "embeddings.position_embeddings.weight": (512, width),
        **norm("embeddings.LayerNorm", width),
    }
    for n in range(layers):
        layer = f"encoder.layer.{n}"
        for attention, inner in (("attention", width), ("crossattention", seen)):
            found |= linear(f"{layer}.{attention}.self.query", width, width)
            found |= linear(f"{layer}.{attention}.self.key", inner, width)
            found |= linear(f"{layer}.{attention}.self.value", inner, width)
            found |= linear(f"{layer}.{attention}.output.dense", width, width)
            found |= norm(f"{layer}.{attention}.output.LayerNorm", width)
        found |= linear(f"{layer}.intermediate.dense", width, 4 * width)
        found |= linear(f"{layer}.output.dense", 4 * width, width)
        found |= norm(f"{layer}.output.LayerNorm", width)
    return found


def published(
    *, seen: int = 64, width: int = 128, layers: tuple[int, int] = (2, 2), side: int = 16, patch: int = 8,
    words: int = len(VOCABULARY) + 2,
) -> Shapes:  # fmt: skip
    """Every tensor of ImageReward.pt by its name; small unless told otherwise."""
    found = {f"blip.visual_encoder.{k}": v for k, v in vision(seen, layers[0], side, patch).items()}
    found |= {f"blip.text_encoder.{k}": v for k, v in text(width, layers[1], words, seen).items()}
    found |= linear("blip.vision_proj", seen, 256) | linear("blip.text_proj", width, 256)
    widths = (width, 1024, 128, 64, 16, 1)
    for n, inner, outer in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        found |= linear(f"mlp.layers.{n}", inner, outer)
    return found


def scorer() -> Shapes:
    """What Reward3D_Scorer.pt has besides."""
    return linear("Scorer.fc1", 512, 256) | linear("Scorer.fc2", 256, 64) | linear("Scorer.fc3", 64, 1)


def fusion(width: int = 128) -> Shapes:
    """What Reward3D_CrossViewFusion.pt has besides."""
    attention = "cross_view_adapter.self_attn"
    return {
        f"{attention}.in_proj_weight": (3 * width, width),
        f"{attention}.in_proj_bias": (3 * width,),
        **linear(f"{attention}.out_proj", width, width),
        **linear("cross_view_adapter.fusion_gate.0", 2 * width, width),
    }


def tensors(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Random weights that keep the size of what goes through them."""
    generator = rng(seed, 0, "weights")
    found = {}
    for name, shape in shapes.items():
        if name.endswith("position_ids"):
            found[name] = torch.arange(shape[1])[None]
            continue
        fan = max(torch.Size(shape[1:]).numel(), 1)
        scale = 0.1 if len(shape) == 1 else 0.5 if "embed" in name else fan**-0.5
        found[name] = scale * torch.randn(shape, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            found[name] += 1.0
    return found


def save_words(folder: Path) -> None:
    """bert-base-uncased's files with another vocabulary."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')


def save_image_reward(weights: Path, **sizes: Any) -> Path:
    """A folder of weights with image-reward in it; returns the model's own."""
    folder = weights / "image-reward"
    save_words(folder / "tokenizer")
    torch.save(tensors(published(**sizes)), folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(MED))
    return folder


def save_reward3d(weights: Path, name: str, file: str, more: Shapes) -> Path:
    """The same for a Reward3D, which has no med_config.json."""
    folder = weights / name
    save_words(folder / "tokenizer")
    torch.save(tensors(published() | more), folder / file)
    return folder
