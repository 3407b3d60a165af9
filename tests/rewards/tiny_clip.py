"""CLIP models with few random weights, on disk as their makers publish them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from splatgen.models.loading import quiet
from splatgen.runs.rng import rng

VOCABULARY = 520
SIDE = 28
WIDTH = 12  # of the shared space


def write_words(folder: Path, vocabulary: int = VOCABULARY) -> Path:
    """CLIP's tokenizer with single bytes and a few merges; the last two tokens begin and end a text."""
    merges = ["a t</w>", "r e", "re d</w>", "c u", "b e</w>", "cu be</w>"]
    signs = sorted(ByteLevel.alphabet())
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), *(merge.replace(" ", "") for merge in merges)]
    kept = tokens[-(vocabulary - 2) :]  # fewer than all leaves out control characters
    kept += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(kept)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    (folder / "special_tokens_map.json").write_text("{}")
    return folder


def open_clip_tensors(image=(160, 2), text=(128, 2)) -> dict[str, torch.Tensor]:
    """Random tensors with open_clip's names: towers of (width, layers)."""
    generator = rng(0, 0, "open_clip")

    def random(*shape):
        return 0.05 * torch.randn(shape, generator=generator)

    def norm(name, width):
        return {f"{name}.weight": 1 + random(width), f"{name}.bias": random(width)}

    def linear(name, out, into):
        return {f"{name}.weight": random(out, into), f"{name}.bias": random(out)}

    def blocks(prefix, width, layers):
        found: dict[str, torch.Tensor] = {}
        for n in range(layers):
            block = f"{prefix}transformer.resblocks.{n}"
            found |= norm(f"{block}.ln_1", width) | norm(f"{block}.ln_2", width)
            found[f"{block}.attn.in_proj_weight"] = random(3 * width, width)
            found[f"{block}.attn.in_proj_bias"] = random(3 * width)
            found |= linear(f"{block}.attn.out_proj", width, width)
            found |= linear(f"{block}.mlp.c_fc", 4 * width, width)
            found |= linear(f"{block}.mlp.c_proj", width, 4 * width)
        return found

    return {
        "positional_embedding": random(77, text[0]),
        "text_projection": random(text[0], WIDTH),
        "logit_scale": torch.tensor(4.6),
        "visual.class_embedding": random(image[0]),
        "visual.positional_embedding": random(1 + (SIDE // 14) ** 2, image[0]),
        "visual.proj": random(image[0], WIDTH),
        "visual.conv1.weight": random(image[0], 3, 14, 14),
        **norm("visual.ln_pre", image[0]),
        **norm("visual.ln_post", image[0]),
        **blocks("visual.", *image),
        **blocks("", *text),
        "token_embedding.weight": random(VOCABULARY, text[0]),
        **norm("ln_final", text[0]),
    }


def write_hpsv2(weights: Path, name: str = "hpsv2", tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """HPSv2's file, in half precision as published, and its tokenizer; the path of the file."""
    file = {"hpsv2": "HPS_v2.1_compressed.pt", "hpsv2.0": "HPS_v2_compressed.pt"}[name]
    write_words(weights / name / "tokenizer")
    found = open_clip_tensors() if tensors is None else tensors
    torch.save({"state_dict": {key: value.half() for key, value in found.items()}}, weights / name / file)
    return weights / name / file


def clip_model(end: int = VOCABULARY - 1, **changes) -> CLIPModel:
    """A CLIP model; `end` is what its configuration calls the end of a text (2 in older ones)."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": VOCABULARY, "eos_token_id": end, "bos_token_id": VOCABULARY - 2}
    config = CLIPConfig(
        text_config=text,
        vision_config={**tower, "image_size": SIDE, "patch_size": 14},
        **{"projection_dim": WIDTH, "logit_scale_init_value": 4.0, **changes},
    )
    generator = rng(0, 0, "clip")
    with quiet():
        model = CLIPModel(config).eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if values.ndim:
                values.copy_("norm" in name and "weight" in name)
                values.add_(0.2 * torch.randn(values.shape, generator=generator))
    return model


def write_clip(folder: Path, model: CLIPModel | None = None) -> Path:
    """A model in transformers' layout, with its tokenizer; the folder."""
    with quiet():
        (model or clip_model()).save_pretrained(folder)
    return write_words(folder)


def write_aesthetic(weights: Path) -> None:
    """Both aesthetic predictors."""
    generator = rng(0, 0, "aesthetic")
    sizes = dict(
        zip((0, 2, 4, 6, 7), ((1024, WIDTH), (128, 1024), (64, 128), (16, 64), (1, 16)), strict=True)
    )
    layers = {}
    for n, (out, into) in sizes.items():
        layers[f"layers.{n}.weight"] = torch.randn(out, into, generator=generator) / into**0.5
        layers[f"layers.{n}.bias"] = torch.randn(out, generator=generator)
    linear = {"weight": torch.randn(1, WIDTH, generator=generator), "bias": torch.ones(1)}
    for name, file, head in (
        ("aesthetic", "sa_0_4_vit_l_14_linear.pth", linear),
        ("aesthetic-v2", "aesthetic-model.pth", layers),
    ):
        write_clip(weights / name)
        (weights / name / "head").mkdir()
        torch.save(head, weights / name / "head" / file)


def processor() -> CLIPImageProcessorPil:
    """What transformers does to pictures for CLIP, at this size."""
    size = {"height": SIDE, "width": SIDE}
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size)


def tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def pictures(count: int = 3, height: int = 40, width: int = 33) -> torch.Tensor:
    """Smooth pictures [B, 3, H, W] that stay within 0.2..0.8, so no filter leaves 0..1."""
    coarse = torch.rand(count, 3, 5, 4, generator=rng(0, 0, "pictures"))
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return 0.2 + 0.6 * fine
