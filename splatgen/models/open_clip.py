"""CLIP towers with open_clip's names for their tensors, as transformers' CLIP classes want them.

open_clip keeps the three projections of an attention in one tensor, and multiplies by the transpose of the
matrices that go into the shared space.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from splatgen.models.weights import WeightsError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPTextConfig, CLIPVisionConfig

TEXT = {  # open_clip's name: transformers', in CLIPTextModelWithProjection
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}
VISION = {  # in CLIPVisionModelWithProjection, whose own spelling of one of them is wrong
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
TRANSPOSED = ("text_projection", "visual.proj")
BUFFERS = ("attn_mask",)  # the causal mask, which some files hold


def text_tower(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text tower's tensors by their names in transformers' CLIPTextModelWithProjection.

    What belongs to no text tower is left out (`visual.*`, `logit_scale`); what looks like one's and is
    unknown keeps its name, so that a strict load refuses it.
    """
    chosen = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("visual.") and name not in ("logit_scale", *BUFFERS)
    }
    return _renamed(chosen, TEXT, "transformer.resblocks.", "text_model.encoder.layers.")


def vision_tower(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower's tensors (`visual.*`) by their names in transformers' CLIPVisionModelWithProjection.

    An unknown name stays as it is, so that a strict load refuses it.
    """
    chosen = {name: tensor for name, tensor in tensors.items() if name.startswith("visual.")}
    return _renamed(chosen, VISION, "visual.transformer.resblocks.", "vision_model.encoder.layers.")


def text_config(tensors: Mapping[str, Tensor], path: Path, head_width: int = 64) -> CLIPTextConfig:
    """The sizes of a text tower with open_clip's names: all but its heads' width D can be read off.

    The end of a text is the last token of the vocabulary: open_clip pools the highest id, which is the same.
    """
    from transformers import CLIPTextConfig

    vocabulary, width = _shape(tensors, "token_embedding.weight", 2, path)
    hidden, _ = _shape(tensors, "transformer.resblocks.0.mlp.c_fc.weight", 2, path)
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=hidden,
        projection_dim=_shape(tensors, "text_projection", 2, path)[1],
        num_hidden_layers=_blocks(tensors, "transformer.resblocks."),
        num_attention_heads=_heads(width, head_width, path),
        max_position_embeddings=_shape(tensors, "positional_embedding", 2, path)[0],
        hidden_act="gelu",
        pad_token_id=0,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
    )


def vision_config(tensors: Mapping[str, Tensor], path: Path, head_width: int = 80) -> CLIPVisionConfig:
    """The sizes of a vision tower with open_clip's names: all but its heads' width D can be read off.

    ViT-H-14 has 80, ViT-L-14 and smaller ones 64.
    """
    from transformers import CLIPVisionConfig

    width, _, _, patch = _shape(tensors, "visual.conv1.weight", 4, path)
    places, _ = _shape(tensors, "visual.positional_embedding", 2, path)
    hidden, _ = _shape(tensors, "visual.transformer.resblocks.0.mlp.c_fc.weight", 2, path)
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=hidden,
        projection_dim=_shape(tensors, "visual.proj", 2, path)[1],
        num_hidden_layers=_blocks(tensors, "visual.transformer.resblocks."),
        num_attention_heads=_heads(width, head_width, path),
        image_size=round((places - 1) ** 0.5) * patch,  # one place is the class's
        patch_size=patch,
        hidden_act="gelu",
    )


def _renamed(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], old: str, new: str
) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        if name in names:
            found[names[name]] = tensor.T.contiguous() if name in TRANSPOSED else tensor
        elif name.startswith(old):
            number, _, rest = name.removeprefix(old).partition(".")
            found.update({f"{new}{number}.{key}": part for key, part in _block(rest, tensor)})
        else:
            found[name] = tensor
    return found


def _block(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """One tensor of a transformer's block: a joint projection becomes three."""
    for kind in ("weight", "bias"):
        if name == f"attn.in_proj_{kind}":
            keys = [f"self_attn.{letter}_proj.{kind}" for letter in "qkv"]
            return list(zip(keys, tensor.chunk(3), strict=True))
    layer, _, kind = name.rpartition(".")
    return [(f"{BLOCK.get(layer, layer)}.{kind}", tensor)]


def _shape(tensors: Mapping[str, Tensor], name: str, dimensions: int, path: Path) -> tuple[int, ...]:
    shape = tuple(getattr(tensors.get(name), "shape", ()))
    if len(shape) != dimensions:
        raise WeightsError(
            f"{path} is no CLIP model with open_clip's names: it has no {name} of {dimensions} dimensions; "
            "fetch it again, or give another file"
        )
    return shape


def _blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def _heads(width: int, head_width: int, path: Path) -> int:
    if width % head_width:
        raise WeightsError(
            f"{path} has a tower of width {width}, which heads of {head_width} do not divide: give the model "
            "that was published"
        )
    return width // head_width
