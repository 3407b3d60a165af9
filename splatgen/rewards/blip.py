"""BLIP (Li et al. 2022) as reward models are published on it, in transformers' own classes.

ImageReward and Reward3D publish one flat file each: a vision transformer under timm's names, BERT with
cross-attention to the picture, and a head. Only names differ from transformers'; what they compute does not.

Shapes: B images, S their side in pixels, L tokens, D the width of the text encoder.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from splatgen.models import paging
from splatgen.models.budget import LoadOptions
from splatgen.models.loading import explained, fill, quiet, read_tensors, torch_dtype
from splatgen.models.weights import WeightsError

if TYPE_CHECKING:
    from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig

RENAMES = (  # published, transformers' below `Blip`; each at most once in a name
    ("blip.visual_encoder.cls_token", "blip.vision.embeddings.class_embedding"),
    ("blip.visual_encoder.pos_embed", "blip.vision.embeddings.position_embedding"),
    ("blip.visual_encoder.patch_embed.proj.", "blip.vision.embeddings.patch_embedding."),
    ("blip.visual_encoder.norm.", "blip.vision.post_layernorm."),
    ("blip.visual_encoder.blocks.", "blip.vision.encoder.layers."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    ("blip.text_encoder.", "blip.text."),
    ("mlp.layers.", "mlp."),
    ("Scorer.", "scorer."),
)
# heads of BLIP's own training, and the numbers 0 to 511, which the class makes itself
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
HEAD_WIDTH = 64  # of every published encoder: 16 heads in 1024, 12 in 768


class Blip(torch.nn.Module):
    """A vision transformer, and BERT that reads a prompt while it looks at the picture."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        from transformers import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.side: int = vision.image_size
        self.width: int = text.hidden_size

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """What the first token [B, D] knows of normalised pictures [B, 3, S, S] and tokens [B, L]."""
        seen = self.vision(pixels).last_hidden_state
        # is_decoder in the configuration makes the cross-attention; here it would make the mask causal
        states = self.text(ids, attention_mask=mask, encoder_hidden_states=seen, is_decoder=False)
        first: Tensor = states.last_hidden_state[:, 0]
        return first


N = TypeVar("N", bound=torch.nn.Module)


def load_network(
    make: Callable[[Blip], N],
    path: Path,
    load_options: LoadOptions,
    *,
    med: Mapping[str, Any],
    vision_heads: int | None = None,
) -> N:
    """A published file's network: `make` puts the head, which stays in float32, onto BLIP.

    med is what tensors do not tell of BERT, under transformers' names; without it, that is as published.
    Raises WeightsError unless every tensor is wanted and every wanted one is there.
    """
    tensors = read_tensors(path)
    with explained(Blip, path), torch.device("meta"), quiet():  # no memory, no random numbers
        blip = architecture(tensors, path, med, vision_heads)
        network = make(blip)
    blip.to(torch_dtype(load_options))
    network.to_empty(device="cpu" if load_options.paged else load_options.device)
    positions = blip.text.embeddings.position_ids  # [1, 512], in no file
    positions.copy_(torch.arange(positions.shape[-1]))
    fill(network, renamed(tensors), path)
    if load_options.paged:
        paging.paged(network, load_options.device)
    return network


def renamed(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors by transformers' names instead of the published ones, without those that no score needs."""
    found = {}
    for published, tensor in tensors.items():
        if published.startswith(UNUSED):
            continue
        name = published
        for old, new in RENAMES:
            name = name.replace(old, new)
        found[name] = tensor
    return found


def architecture(
    tensors: Mapping[str, Any], path: Path, med: Mapping[str, Any], vision_heads: int | None = None
) -> Blip:
    """BLIP in the sizes of published tensors; layer norm's epsilons are those of its own code."""
    from transformers import BlipTextConfig, BlipVisionConfig

    patch = _shape(tensors, path, "blip.visual_encoder.patch_embed.proj.weight", 4)
    positions = _shape(tensors, path, "blip.visual_encoder.pos_embed", 3)
    inner = _shape(tensors, path, "blip.visual_encoder.blocks.0.mlp.fc1.weight", 2)
    vision = BlipVisionConfig(
        hidden_size=patch[0],
        intermediate_size=inner[0],
        num_hidden_layers=_layers(tensors, "blip.visual_encoder.blocks."),
        num_attention_heads=vision_heads or max(patch[0] // HEAD_WIDTH, 1),
        image_size=patch[-1] * math.isqrt(positions[1] - 1),
        patch_size=patch[-1],
        layer_norm_eps=1e-6,
    )
    words = _shape(tensors, path, "blip.text_encoder.embeddings.word_embeddings.weight", 2)
    places = _shape(tensors, path, "blip.text_encoder.embeddings.position_embeddings.weight", 2)
    inner = _shape(tensors, path, "blip.text_encoder.encoder.layer.0.intermediate.dense.weight", 2)
    usual = {"num_attention_heads": max(words[1] // HEAD_WIDTH, 1), "layer_norm_eps": 1e-12}
    return Blip(
        vision,
        BlipTextConfig(
            vocab_size=words[0],
            hidden_size=words[1],
            encoder_hidden_size=patch[0],
            intermediate_size=inner[0],
            num_hidden_layers=_layers(tensors, "blip.text_encoder.encoder.layer."),
            max_position_embeddings=places[0],
            is_decoder=True,
            **{**usual, **med},
        ),
    )


def _shape(tensors: Mapping[str, Any], path: Path, name: str, dimensions: int) -> tuple[int, ...]:
    shape = tuple(getattr(tensors.get(name), "shape", ()))
    if len(shape) != dimensions or 0 in shape:
        raise WeightsError(f"{path} has no tensor {name} of {dimensions} dimensions: give the published file")
    return shape


def _layers(tensors: Mapping[str, Any], prefix: str) -> int:
    numbers = {name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)}
    return len(numbers)


class Words:
    """Prompts as BERT's tokens, padded to a fixed count, each read once.

    Published codes cut longer prompts without a word. Here they are cut in the same place, since scores are
    to be those of others, and a warning says what is not read.
    """

    def __init__(self, tokenizer: BertTokenizer, *, most: int, name: str, device: str) -> None:
        self._tokenizer, self._most, self._name, self._device = tokenizer, most, name, device
        self._read: dict[str, tuple[Tensor, Tensor]] = {}  # by prompt: ids [L] and mask [L]

    def read(self, prompts: Sequence[str]) -> None:
        """Tokenise those that are new, and warn of those that are too long."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._read]
        if not new:
            return
        found = self._tokenizer(
            new, padding="max_length", truncation=True, max_length=self._most, return_tensors="pt"
        ).to(self._device)
        self._read |= zip(new, zip(found.input_ids, found.attention_mask, strict=True), strict=True)
        cut = [(prompt, rest) for prompt in new if (rest := self._unread(prompt))]
        if cut:
            prompt, rest = cut[0]
            others = f", nor the ends of {len(cut) - 1} others" if len(cut) > 1 else ""
            warnings.warn(
                f"{self._name} reads {self._most - 2} tokens of a prompt: of {prompt[:40]!r}... it does not "
                f"read {rest[:200]!r}{others}",
                stacklevel=3,
            )

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens [B, L] and their mask [B, L], 1 for those that are not padding."""
        self.read(prompts)
        ids, masks = zip(*(self._read[prompt] for prompt in prompts), strict=True)
        return torch.stack(ids), torch.stack(masks)

    def _unread(self, prompt: str) -> str:
        """What of a prompt comes after the last token that is read."""
        places = self._tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        places = places.offset_mapping[self._most - 2 :]
        return prompt[places[0][0] :] if places else ""


def load_words(folder: Path, network: Blip, *, most: int, name: str, device: str) -> Words:
    """BERT's tokenizer from a folder, with the two words that BLIP adds to its vocabulary.

    Raises WeightsError for a vocabulary that is not the network's.
    """
    from transformers import BertTokenizer

    with explained(BertTokenizer, folder), quiet():
        tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
    rows = network.text.config.vocab_size
    if len(tokenizer) != rows:
        raise WeightsError(
            f"the vocabulary in {folder} has {len(tokenizer)} words with BLIP's two, and {name} has {rows}: "
            "give the vocabulary of bert-base-uncased"
        )
    return Words(tokenizer, most=most, name=name, device=device)
