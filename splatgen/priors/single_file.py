"""Networks out of a single file in the layout of the original latent-diffusion code, as model sites share it.

Their shapes come from the configuration of the published model that the file is made from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from splatgen.models.loading import explained, fill, quiet, read_json
from splatgen.models.open_clip import text_tower

N = TypeVar("N", bound=nn.Module)
Config = dict[str, Any]


def from_single_file(
    kind: type[N], path: Path, tensors: Mapping[str, Tensor], place: Path, *, dtype: torch.dtype
) -> N:
    """A network of diffusers or transformers out of a file's tensors, on the CPU, frozen.

    Its configuration is in `place`, a folder with diffusers' name for the part (unet, vae, text_encoder,
    text_encoder_2). Raises WeightsError unless the file has all of it, and nothing of it is left over.
    """
    config = read_json(place / "config.json")
    with explained(kind, path), quiet():
        renamed = RENAME[place.name](tensors, config)
        network = _empty(kind, place, config)
        return fill(network, {key: value.to(dtype) for key, value in renamed.items()}, path).to(dtype)


def _empty(kind: type[N], place: Path, config: Config) -> N:
    made: Any = kind
    if hasattr(kind, "from_config"):  # diffusers' have nothing that a file lacks: no need to draw weights
        with torch.device("meta"):
            return cast("N", made.from_config(config))
    return cast("N", made(made.config_class.from_pretrained(place, local_files_only=True)))


def _unet(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    mine = {key: value for key, value in tensors.items() if key.startswith("model.diffusion_model.")}
    return _all_of(mine, convert_ldm_unet_checkpoint(mine, config))


def _vae(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    places = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")  # not the losses and averages
    starts = tuple(f"first_stage_model.{place}" for place in places)
    mine = {key: value for key, value in tensors.items() if key.startswith(starts)}
    return _all_of(mine, convert_ldm_vae_checkpoint(mine, config))


def _all_of(mine: Mapping[str, Tensor], renamed: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers leaves out what it has no name for."""
    if len(mine) > len(renamed):
        raise ValueError(f"{len(mine) - len(renamed)} tensors have no place in the published architecture")
    return renamed


def _text(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The first text encoder: OpenAI's CLIP in Stable Diffusion 1 and XL, OpenCLIP's in 2."""
    for prefix in ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer."):
        if found := _below(prefix, tensors):
            return _without_level(found)
    found = _open_clip(_below("cond_stage_model.model.", tensors), config)
    return _without_level({key: value for key, value in found.items() if key != "text_projection.weight"})


def _second_text(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    return _open_clip(_below("conditioner.embedders.1.model.", tensors), config)


def _open_clip(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """As many layers as are read: Stable Diffusion 2 ends with the last but one."""
    unread = tuple(f"text_model.encoder.layers.{n}." for n in range(config["num_hidden_layers"], 100))
    return {key: value for key, value in text_tower(tensors).items() if not key.startswith(unread)}


def _without_level(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIPTextModel's names in transformers 5; older files count the places, which are no weights."""
    return {
        key.removeprefix("text_model."): value
        for key, value in tensors.items()
        if not key.endswith("embeddings.position_ids")
    }


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


RENAME: dict[str, Callable[[Mapping[str, Tensor], Config], dict[str, Tensor]]] = {
    "unet": _unet,
    "vae": _vae,
    "text_encoder": _text,
    "text_encoder_2": _second_text,
}
