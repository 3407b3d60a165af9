"""CLIP and the scores made of it, written out from their published formulas: no transformers, float64.

Radford et al. 2021 (the vision and text transformers, quick GELU), PickScore's exp(logit_scale) x cosine, the
100 x cosine of the CLIP score, LAION's aesthetic heads on unit vectors. Names of tensors are transformers'.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


def linear(t: Tensors, name: str, x: Tensor) -> Tensor:
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]


def norm(t: Tensors, name: str, x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * t[f"{name}.weight"] + t[f"{name}.bias"]


def attention(t: Tensors, name: str, x: Tensor, heads: int, causal: bool) -> Tensor:
    found = []
    q, k, v = (linear(t, f"{name}.{part}_proj", x) for part in "qkv")
    width = x.shape[-1] // heads
    for n in range(heads):
        part = slice(n * width, (n + 1) * width)
        scores = q[:, :, part] @ k[:, :, part].transpose(1, 2) / width**0.5
        if causal:
            scores = scores + torch.full_like(scores[0], -torch.inf).triu(1)
        found.append(scores.softmax(-1) @ v[:, :, part])
    return linear(t, f"{name}.out_proj", torch.cat(found, -1))


def transformer(t: Tensors, tower: str, x: Tensor, *, layers: int, heads: int, causal: bool) -> Tensor:
    for n in range(layers):
        name = f"{tower}.encoder.layers.{n}"
        x = x + attention(t, f"{name}.self_attn", norm(t, f"{name}.layer_norm1", x), heads, causal)
        inner = linear(t, f"{name}.mlp.fc1", norm(t, f"{name}.layer_norm2", x))
        x = x + linear(t, f"{name}.mlp.fc2", inner * torch.sigmoid(1.702 * inner))
    return x


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def image_vectors(t: Tensors, pixels: Tensor, *, layers: int = 2, heads: int = 2) -> Tensor:
    """Unit vectors [B, D] of normalised pixels [B, 3, S, S]."""
    filters = t["vision_model.embeddings.patch_embedding.weight"]
    side = filters.shape[-1]
    cut = pixels.unfold(2, side, side).unfold(3, side, side)  # [B, 3, R, C, side, side]
    seen = torch.einsum("bcrkij,ocij->brko", cut, filters).flatten(1, 2)
    first = t["vision_model.embeddings.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, seen], 1) + t["vision_model.embeddings.position_embedding.weight"]
    x = norm(t, "vision_model.pre_layrnorm", x)
    x = transformer(t, "vision_model", x, layers=layers, heads=heads, causal=False)[:, 0]
    return unit(norm(t, "vision_model.post_layernorm", x) @ t["visual_projection.weight"].T)


def text_vector(t: Tensors, ids: Tensor, *, layers: int = 2, heads: int = 2) -> Tensor:
    """The unit vector [D] of one text's ids [L], whose end is the highest."""
    x = t["text_model.embeddings.token_embedding.weight"][ids]
    x = x + t["text_model.embeddings.position_embedding.weight"][: len(ids)]
    x = transformer(t, "text_model", x[None], layers=layers, heads=heads, causal=True)
    x = norm(t, "text_model.final_layer_norm", x)[0, int(ids.argmax())]
    return unit(x @ t["text_projection.weight"].T)


def aesthetic(head: Tensors, vectors: Tensor) -> Tensor:
    """One linear layer (v1), or those of a sequence, one after the other, without anything between (v2)."""
    names = sorted({name.rpartition(".")[0] for name in head})
    for name in names:
        prefix = f"{name}." if name else ""
        vectors = vectors @ head[f"{prefix}weight"].T + head[f"{prefix}bias"]
    return vectors[:, 0]
