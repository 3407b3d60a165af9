"""Models behind T5 with few random weights, in the layout in which the real ones are published.

`deepfloyd(folder)` and `sd3(folder)` write what a user's folder of weights holds; the classes are the real
ones.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

T5_WIDTH = 48
WORDS = ("a", "red", "blue", "cube", "boat", "of", "the", "photo", "view", "front", "side", "back")
LETTERS = "abcdefghijklmnopqrstuvwxyz,.'-ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PIECES = [
    ("<pad>", 0.0),
    ("</s>", 0.0),
    ("<unk>", 0.0),
    *((f"▁{word}", -2.0 - 0.1 * n) for n, word in enumerate(WORDS)),
    ("▁", -4.0),
    *((letter, -5.0 - 0.1 * n) for n, letter in enumerate(LETTERS)),
]


def seeded(kind: Any, *args: Any, **kwargs: Any) -> Any:
    """A network with random weights, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(*args, **kwargs)


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number: int, value: bytes | float | int) -> bytes:
    """A field in protobuf's wire format."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def spiece(pieces: list[tuple[str, float]], charsmap: bytes = b"") -> bytes:
    """A SentencePiece model as its trainer writes it: pieces, the trainer's settings, the normaliser."""
    body = b""
    for n, (text, score) in enumerate(pieces):
        kind = b"" if n > 2 else field(3, 2 if n == 2 else 3)  # unknown and control pieces
        body += field(1, field(1, text.encode()) + field(2, score) + kind)
    trainer = field(3, 1) + field(4, len(pieces)) + field(40, 2) + field(10, 0.9995)
    normaliser = field(1, b"nmt_nfkc") + (field(2, charsmap) if charsmap else b"") + field(3, 1)
    return body + field(2, trainer) + field(3, normaliser)


def save_t5_tokenizer(folder: Path, form: str) -> None:
    """As tokenizer.json, which Stable Diffusion 3 has beside spiece.model, or the latter alone, as IF."""
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(spiece(PIECES))
    if form == "spiece":
        settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "model_max_length": 512}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return
    sentinels = [(f"<extra_id_{n}>", 0.0) for n in reversed(range(100))]
    T5Tokenizer(vocab=[*PIECES, *sentinels]).save_pretrained(folder)


def t5_encoder() -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(PIECES) + 100,
        d_model=T5_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return seeded(T5EncoderModel, config)


def deepfloyd(folder: Path, *, tokenizer: str = "spiece", channels: int = 3) -> Path:
    """DeepFloyd IF's first stage, of 8 pixels."""
    unet = seeded(
        UNet2DConditionModel,
        sample_size=8,
        in_channels=channels,
        out_channels=6,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        act_fn="gelu",
        attention_head_dim=4,
        norm_num_groups=4,
        cross_attention_dim=32,
        cross_attention_norm="group_norm",
        encoder_hid_dim=T5_WIDTH,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    )
    unet.save_pretrained(folder / "unet")
    t5_encoder().save_pretrained(folder / "text_encoder")
    save_t5_tokenizer(folder / "tokenizer", tokenizer)
    DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
    ).save_pretrained(folder / "scheduler")
    return folder


def save_clip(folder: Path, number: str, width: int, pad: int) -> None:
    """A text encoder with projection, and CLIP's tokenizer with bytes for words."""
    letters = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 256))]
    letters += [chr(256 + n) for n in range(256 - len(letters))]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    place = folder / f"tokenizer{number}"
    place.mkdir(parents=True)
    (place / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(vocabulary)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": vocabulary[pad]}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "unk_token": "<|endoftext|>"}
    (place / "tokenizer_config.json").write_text(json.dumps({**settings, **tokens}))
    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=width,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=pad,
    )
    seeded(CLIPTextModelWithProjection, config).save_pretrained(folder / f"text_encoder{number}")


def sd3(folder: Path, *, version: str = "3", t5: bool = True) -> Path:
    """Stable Diffusion 3, or 3.5 with its normalised queries and second attention; images of 16 pixels."""
    newer = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)} if version == "3.5" else {}
    seeded(
        SD3Transformer2DModel,
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=40,
        pos_embed_max_size=12,
        **newer,
    ).save_pretrained(folder / "transformer")
    seeded(
        AutoencoderKL,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).save_pretrained(folder / "vae")
    save_clip(folder, "", 16, pad=513)
    save_clip(folder, "_2", 24, pad=0)
    if t5:
        t5_encoder().save_pretrained(folder / "text_encoder_3")
        save_t5_tokenizer(folder / "tokenizer_3", "json")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    return folder


def taesd3(folder: Path) -> Path:
    """The tiny autoencoder of Stable Diffusion 3's latents."""
    seeded(
        AutoencoderTiny,
        latent_channels=16,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(folder)
    return folder
