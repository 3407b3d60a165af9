"""Folders and files in the published layouts of Stable Diffusion 1, 2 and XL, with few random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

SIDE = 16  # pixels; latents of 8
WIDTH = {"sd15": 16, "sd21": 16, "sdxl": 16}  # of a text encoder
LEVELS = (8, 16)
NUMBERS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

UNETS = {
    "sd15": {"attention_head_dim": 2},
    "sd21": {"attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True},
    "sdxl": {
        "attention_head_dim": [2, 4],
        "use_linear_projection": True,
        "transformer_layers_per_block": [1, 2],
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 16,
        "cross_attention_dim": 32,
    },
}


def unet(family: str, **changes) -> UNet2DConditionModel:
    settings = {
        "sample_size": SIDE // 2,
        "block_out_channels": LEVELS,
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH[family],
        "norm_num_groups": 4,
    }
    own: Any = UNETS[family]
    return UNet2DConditionModel(**{**settings, **own, **changes})


def vae(family: str) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIDE,
        scaling_factor=0.13025 if family == "sdxl" else 0.18215,
        force_upcast=family == "sdxl",
    )


def tiny_vae() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    )


def text_encoder(
    kind: type[nn.Module] = CLIPTextModel, *, act: str = "quick_gelu", layers: int = 2
) -> nn.Module:
    return kind(
        CLIPTextConfig(
            vocab_size=514,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            projection_dim=16,
            hidden_act=act,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513 if act == "quick_gelu" else 0,
        )
    )


def networks(family: str, *, seed: int = 0) -> dict[str, nn.Module]:
    """By the names of their folders, with every weight drawn, those that start at zero too."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = {"unet": unet(family), "vae": vae(family)}
        found["text_encoder"] = text_encoder(act="gelu" if family == "sd21" else "quick_gelu")
        if family == "sdxl":
            found["text_encoder_2"] = text_encoder(CLIPTextModelWithProjection, act="gelu")
        for network in found.values():
            for p in network.parameters():
                p.data += 0.05 * torch.randn_like(p)
    return found


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_tokenizer(folder: Path, *, pad: str = "<|endoftext|>") -> None:
    """CLIP's, with bytes for words, in the files that were published: no tokenizer.json."""
    letters = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 256))]
    letters += [chr(256 + n) for n in range(256 - len(letters))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {word: n for n, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    usual = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {name: {"content": word, **usual} for name, word in names.items()}
    write_json(folder / "special_tokens_map.json", {**special, "pad_token": pad})
    write_json(
        folder / "tokenizer_config.json",
        {
            **{name: {"__type": "AddedToken", **token} for name, token in special.items()},
            "pad_token": pad,
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": 77,
            "tokenizer_class": "CLIPTokenizer",
        },
    )


def write_scheduler(folder: Path, family: str, **changes) -> None:
    kinds = {"sd15": "PNDMScheduler", "sd21": "PNDMScheduler", "sdxl": "EulerDiscreteScheduler"}
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": kinds[family],
            "_diffusers_version": "0.6.0",
            **NUMBERS,
            "num_train_timesteps": 1000,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "trained_betas": None,
            "clip_sample": False,
            "prediction_type": "epsilon",
            **changes,
        },
    )


def write_folder(
    folder: Path, family: str, *, parts: dict[str, nn.Module] | None = None, half: bool = False, **scheduler
) -> dict[str, nn.Module]:
    """A model as it was published; gives back the networks in it."""
    parts = parts or networks(family)
    write_small(folder, family, parts, **scheduler)
    for name, network in parts.items():
        tensors = published_names(name, network)
        stem = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
        path = folder / name / f"{stem}{'.fp16' if half else ''}.safetensors"
        save_file({k: v.half() if half else v for k, v in tensors.items()}, path, metadata={"format": "pt"})
    return parts


def write_small(folder: Path, family: str, parts: dict[str, nn.Module], **scheduler) -> None:
    """All but the weights."""
    for name, network in parts.items():
        if name.startswith("text_encoder"):
            network.config.architectures = [type(network).__name__]
            network.config.save_pretrained(folder / name)
        else:
            network.save_config(folder / name)
    write_scheduler(folder, family, **scheduler)
    write_tokenizer(folder / "tokenizer", pad="!" if family == "sd21" else "<|endoftext|>")
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0"}
    if family == "sdxl":
        write_tokenizer(folder / "tokenizer_2", pad="!")
        index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    write_json(folder / "model_index.json", index)


def published_names(part: str, network: nn.Module) -> dict[str, Tensor]:
    """The published files are older than the libraries: names of the autoencoder's attention and of CLIP."""
    found = {key: value.detach().clone().contiguous() for key, value in network.state_dict().items()}
    if part == "vae":
        new = ("to_q.", "to_k.", "to_v.", "to_out.0.")
        old = ("query.", "key.", "value.", "proj_attn.")
        return {_replaced(key, new, old): value for key, value in found.items()}
    if part.startswith("text_encoder"):
        level = ("text_model.", "text_projection")
        found = {key if key.startswith(level) else f"text_model.{key}": value for key, value in found.items()}
        found["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return found


def _replaced(key: str, old: tuple[str, ...], new: tuple[str, ...]) -> str:
    for a, b in zip(old, new, strict=True):
        key = key.replace(a, b)
    return key


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def ldm_unet_name(key: str, layers: int = 1) -> str:
    """The original code's name for a weight of diffusers' UNet: its blocks count through all levels."""
    layer, kind = key.rsplit(".", 1)
    if layer in ENDS:
        return f"{ENDS[layer]}.{kind}"
    words = layer.split(".")
    if words[0] == "mid_block":
        number = {"resnets": 2 * int(words[2]), "attentions": 1}[words[1]]
        place, rest = f"middle_block.{number}", words[3:]
        what = words[1]
    else:
        level, what, n = int(words[1]), words[2], int(words[3])
        rest = words[4:]
        if words[0] == "down_blocks":
            number = 1 + level * (layers + 1) + (layers if what == "downsamplers" else n)
            inner = {"resnets": 0, "attentions": 1, "downsamplers": 0}[what]
            place = f"input_blocks.{number}.{inner}"
        else:
            number = level * (layers + 1) + (layers if what == "upsamplers" else n)
            place = f"output_blocks.{number}.{ {'resnets': 0, 'attentions': 1}.get(what, 'up') }"
    if what == "resnets":
        rest = [RESNET[rest[0]]]
    if what == "downsamplers":
        rest = ["op"]
    return ".".join([place, *rest, kind])


def ldm_unet(network: UNet2DConditionModel) -> dict[str, Tensor]:
    found = {ldm_unet_name(key): value for key, value in network.state_dict().items()}
    named = {}
    for key, value in found.items():
        block, cut, rest = key.partition(".up.")  # an upsampler comes after the attention, where there is one
        behind = 2 if any(other.startswith(f"{block}.1.") for other in found) else 1
        named[f"{block}.{behind}.{rest}" if cut else key] = value
    return {f"model.diffusion_model.{key}": value for key, value in named.items()}


def ldm_vae(network: AutoencoderKL) -> dict[str, Tensor]:
    """down.LEVEL.block.N and up.LEVEL.block.N, where the original counts the latter from the top."""
    top = len(network.config.block_out_channels) - 1
    found = {}
    for key, value in network.state_dict().items():
        words = key.split(".")
        if words[1] in ("down_blocks", "up_blocks"):
            level = int(words[2]) if words[1] == "down_blocks" else top - int(words[2])
            down = words[1].removesuffix("_blocks")
            if words[3] == "resnets":
                rest = ["block", words[4], *words[5:]]
            else:
                rest = [words[3].removesuffix("rs"), *words[5:]]
                rest[0] = {"downsample": "downsample", "upsample": "upsample"}[rest[0]]
            words = [words[0], down, str(level), *rest]
        elif words[1] == "mid_block":
            number = f"block_{int(words[3]) + 1}" if words[2] == "resnets" else "attn_1"
            words = [words[0], "mid", number, *words[4:]]
        name = ".".join(words)
        mid = ".attn_1." in name
        new = ("conv_shortcut", "conv_norm_out", "group_norm", "to_q", "to_k", "to_v", "to_out.0")
        name = _replaced(name, new, ("nin_shortcut", "norm_out", "norm", "q", "k", "v", "proj_out"))
        linear = mid and value.dim() == 2  # attention as convolutions of one pixel
        found[f"first_stage_model.{name}"] = value[:, :, None, None] if linear else value
    return found


def open_clip_text(network: nn.Module, *, spare: bool) -> dict[str, Tensor]:
    """With open_clip's names; spare adds a last layer that nobody reads."""
    tensors = {key.removeprefix("text_model."): value for key, value in network.state_dict().items()}
    found = {
        "token_embedding.weight": tensors.pop("embeddings.token_embedding.weight"),
        "positional_embedding": tensors.pop("embeddings.position_embedding.weight"),
        "ln_final.weight": tensors.pop("final_layer_norm.weight"),
        "ln_final.bias": tensors.pop("final_layer_norm.bias"),
        "text_projection": tensors.pop("text_projection.weight", torch.eye(16)).T.contiguous(),
        "logit_scale": torch.tensor(4.6),
    }
    layers = network.config.num_hidden_layers
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for n in range(layers + spare):
        old, new = f"encoder.layers.{min(n, layers - 1)}", f"transformer.resblocks.{n}"
        for kind in ("weight", "bias"):
            joint = [tensors[f"{old}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            found[f"{new}.attn.in_proj_{kind}"] = torch.cat(joint)
            found[f"{new}.attn.out_proj.{kind}"] = tensors[f"{old}.self_attn.out_proj.{kind}"]
            for a, b in names.items():
                found[f"{new}.{b}.{kind}"] = tensors[f"{old}.{a}.{kind}"]
    return found


def single_file(family: str, parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """All of a model as the original code saved it, with things that are no part of it."""
    first = {
        "sd15": "cond_stage_model.transformer.",
        "sd21": "cond_stage_model.model.",
        "sdxl": "conditioner.embedders.0.transformer.",
    }[family]
    text = parts["text_encoder"]
    words = open_clip_text(text, spare=True) if family == "sd21" else published_names("text_encoder", text)
    found = {**ldm_unet(parts["unet"]), **ldm_vae(parts["vae"])}
    found |= {f"{first}{key}": value for key, value in words.items()}
    if family == "sdxl":
        second = open_clip_text(parts["text_encoder_2"], spare=False)
        found |= {f"conditioner.embedders.1.model.{key}": value for key, value in second.items()}
    found |= {"alphas_cumprod": torch.ones(3), "first_stage_model.loss.logvar": torch.zeros(1)}
    return {key: value.detach().clone().contiguous() for key, value in found.items()}


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1")
LORA = (*ATTENTION, "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}


def lora(
    parts: dict[str, nn.Module], form: str, *, original: bool = False, alphas: bool = True
) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]:
    """LoRA tensors in a form (kohya, peft, diffusers), and what they add, by network and module.

    Ranks and alphas differ from layer to layer; without `alphas` alpha is the rank. original: layers counted
    as in the original code, as kohya's trainer does for SDXL.
    """
    tensors: dict[str, Tensor] = {}
    added: dict[tuple[str, str], Tensor] = {}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for part, network in parts.items():
            modules = [(name, m.weight) for name, m in network.named_modules() if name.endswith(LORA)]
            for n, (name, weight) in enumerate(modules):
                rank = 1 + n % 3
                alpha = 0.5 + n % 4 if alphas else rank
                a = 0.3 * torch.randn(rank, *weight.shape[1:])
                b = 0.3 * torch.randn(len(weight), rank, *[1] * (weight.dim() - 2))
                added[part, name] = alpha / rank * (b.flatten(1) @ a.flatten(1)).view_as(weight)
                tensors |= _lora_layer(part, name, a, b, alpha, form=form, original=original, parts=parts)
    return tensors, added


def _lora_layer(
    part: str,
    name: str,
    a: Tensor,
    b: Tensor,
    alpha: float,
    *,
    form: str,
    original: bool,
    parts: dict[str, Any],
) -> dict[str, Tensor]:
    level = "" if part == "unet" or name.startswith("text_model.") else "text_model."
    if form == "peft":
        return {f"{part}.{level}{name}.lora_A.weight": a, f"{part}.{level}{name}.lora_B.weight": b}
    prefix = KOHYA[part]
    if prefix == "lora_te" and "text_encoder_2" in parts:
        prefix = "lora_te1"
    if part == "unet" and original:
        name = ldm_unet_name(f"{name}.weight").removesuffix(".weight")
    layer = f"{prefix}_{(level + name).replace('.', '_')}"
    down, up = f"{layer}.lora_down.weight", f"{layer}.lora_up.weight"
    return {down: a, up: b, f"{layer}.alpha": torch.tensor(float(alpha))}
