"""Qwen2-VL and Qwen2.5-VL with few random weights, on disk as their makers publish them; HPSv3 likewise."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from splatgen.models.loading import quiet
from splatgen.rewards.hpsv3 import reward_head
from splatgen.runs.rng import rng

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
MERGES = [("Y", "e"), ("Ye", "s"), ("N", "o"), ("r", "e"), ("re", "d"), ("Ġ", "a")]
WIDTH = 32
TEXT = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 1, "max_position_embeddings": 512}
ROPE = {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": [2, 3, 3]}
QUESTION = "\nHow good is it?  \nTextual prompt - {text_prompt}\n\n\n"
ENDING = "\nYour rating: <|Reward|>\n\nEND\n"


def tokenizer() -> Qwen2Tokenizer:
    signs = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    made = Qwen2Tokenizer(vocab={sign: n for n, sign in enumerate(signs)}, merges=MERGES)
    made.add_special_tokens({"additional_special_tokens": MARKS})
    return made


def _drawn(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = rng(seed, 0, "qwen")
    with torch.no_grad():
        for name, values in network.named_parameters():
            values.copy_(("norm" in name or "ln_q" in name) and values.ndim == 1 and "bias" not in name)
            values.add_(0.2 * torch.randn(values.shape, generator=generator))
    return network.eval()


def _marks(words: Qwen2Tokenizer) -> dict[str, int]:
    known = words.get_vocab()
    ids = {f"{name}_token_id": known[f"<|{mark}|>"] for name, mark in _NAMES.items()}
    return ids | {"video_token_id": len(words) + 1}


_NAMES = {"image": "image_pad", "vision_start": "vision_start", "vision_end": "vision_end"}


def write_vqa(folder: Path) -> Path:
    """Qwen2.5-VL in transformers' layout, with its tokenizer; the folder."""
    words = tokenizer()
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
    vision |= {"out_hidden_size": WIDTH, "fullatt_block_indexes": [1], "window_size": 56}
    text = {**TEXT, "vocab_size": len(words), "rope_parameters": ROPE}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_marks(words))
    with quiet():
        _drawn(Qwen2_5_VLForConditionalGeneration(config), 0).save_pretrained(folder)
        words.save_pretrained(folder)
    return folder


def hpsv3_network(words: Qwen2Tokenizer) -> Qwen2VLForConditionalGeneration:
    """With the words of the tokenizer and one more."""
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2}
    text = {**TEXT, "vocab_size": len(words) + 1, "rope_parameters": ROPE}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **_marks(words))
    with quiet():
        return _drawn(Qwen2VLForConditionalGeneration(config), 1)


def write_hpsv3(folder: Path) -> None:
    """Its three parts: the file of all weights by older names, the base model's texts, the package."""
    words = tokenizer()
    network, head = hpsv3_network(words), _drawn(reward_head(WIDTH), 2)
    base = folder / "base"
    network.config.save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["vocab_size"] += 40  # the base model has room for more
    (base / "config.json").write_text(json.dumps(config))
    with quiet():
        words.save_pretrained(base)
    tensors = {f"rm_head.{name}": value for name, value in head.state_dict().items()}
    for name, value in network.state_dict().items():
        older = name.removeprefix("model.") if ".visual." in name else name.replace("language_model.", "")
        tensors[older] = value.clone()
    save_file(tensors, folder / "HPSv3.safetensors")
    (folder / "question").mkdir()
    source = f"import torch\nINSTRUCTION = {QUESTION!r}\nother: str = 'x'\n"
    source += f"prompt_with_special_token = {ENDING!r}\n"
    with zipfile.ZipFile(folder / "question" / "hpsv3-1.0.0-py3-none-any.whl", "w") as package:
        package.writestr("hpsv3/dataset/data_collator_qwen.py", source)


def hpsv3_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "HPSv3.safetensors")


def chat(said: str, pictures: int) -> str:
    """The published chat template, for one picture and a text."""
    seen = f"<|vision_start|>{'<|image_pad|>' * pictures}<|vision_end|>"
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    return f"{system}<|im_start|>user\n{seen}{said}<|im_end|>\n<|im_start|>assistant\n"
