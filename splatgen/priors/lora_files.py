"""LoRA files that others trained, merged into the weights that they were trained for (Hu et al. 2021).

    W + scale alpha / r  B A

Reads the layouts of diffusers and peft, and of kohya's trainers. Only the names go through diffusers: its own
merging (0.42) loses the alphas of attention layers where a file has several.

Shapes: r the rank, W [out, in, ...], A [r, in, ...], B [out, r, ...]; convolutions are W with a kernel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from splatgen.config import PriorOptions
from splatgen.models.loading import explained, quiet, read_json, read_tensors
from splatgen.models.weights import WeightsError

N = TypeVar("N", bound=nn.Module)
Layer = tuple[Tensor, Tensor]  # A, and B with alpha / r in it


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """What a file adds to each of a model's networks."""

    path: Path
    scale: float
    networks: Mapping[str, Mapping[str, Layer]]  # by network, by module

    @property
    def source(self) -> str:
        """To be added to that of the model."""
        return f" + {self.scale:g} of {self.path}" if any(self.networks.values()) else ""

    def merge(self, name: str, network: N) -> N:
        """Add what is for a network, and give it back.

        Raises WeightsError for a layer that it has not, or of another size.
        """
        for module, (a, b) in self.networks.get(name, {}).items():
            weight = self._weight(name, network, module)
            if len(b) * a[0].numel() != weight.numel() or len(b) != len(weight):
                raise WeightsError(
                    f"{self.path} has {tuple(b.shape)} x {tuple(a.shape)} for {module} of {name}, which is "
                    f"{tuple(weight.shape)}: give LoRA weights that were trained on this model"
                )
            delta = b.float().flatten(1) @ a.float().flatten(1)
            with torch.no_grad():
                weight.copy_(weight.float() + self.scale * delta.view(weight.shape).to(weight.device))
        return network

    def _weight(self, name: str, network: nn.Module, module: str) -> Tensor:
        # transformers 5 took a level away, from one of its classes
        for where in (module, module.removeprefix("text_model."), f"text_model.{module}"):
            try:
                found = getattr(network.get_submodule(where), "weight", None)
            except AttributeError:
                continue
            if found is not None:
                weight: Tensor = found
                return weight
        raise WeightsError(
            f"{self.path} changes {module}, which {name} has not: give LoRA weights that were trained on "
            "this model"
        )


def read_lora(
    options: PriorOptions, networks: Sequence[str], unet: Mapping[str, Any] | None = None
) -> LoraFile:
    """The file that the options name, for a model of those networks (unet or transformer, text_encoder, ...).

    unet is a configuration, for files for SDXL: kohya's count its layers as the original code does. Raises
    WeightsError for a file that is damaged, holds no LoRA weights, or some for another kind of model. Without
    a file, nothing is added.
    """
    if options.lora is None:
        return LoraFile(path=Path(), scale=0.0, networks={})
    path = Path(options.lora).expanduser()
    if path.suffix != ".safetensors":
        raise WeightsError(f"LoRA weights are read from .safetensors files: convert {path}")
    with explained("LoRA weights", path), quiet():
        named = _in_peft_names(path, _scaled(path, read_tensors(path)), networks, unet)
        said = {**_adapter_config(path, networks), **_metadata(path)}
        layers: dict[str, dict[str, Layer]] = {name: {} for name in networks}
        for key in [key for key in named if key.endswith(".lora_A.weight")]:
            module = key.removesuffix(".lora_A.weight")
            a, b = named.pop(key), named.pop(f"{module}.lora_B.weight", torch.empty(0, 0))
            if len(a) == 0 or b.flatten(1).shape[1] != len(a):
                raise WeightsError(
                    f"{path} has no two matrices for {module}: give a file of plain LoRA weights"
                )
            if not (a.isfinite().all() and b.isfinite().all()):
                raise WeightsError(f"{path} has numbers for {module} that are not finite: give another file")
            name, _, inner = module.partition(".")
            if name not in layers:
                raise WeightsError(f"{path} changes {module}: give LoRA weights for {', '.join(networks)}")
            layers[name][inner] = a, b * (_said_alpha(said, name, inner, len(a)) / len(a))
    if named or not any(layers.values()):
        rest = f"has {min(named)}, which is not LoRA" if named else "holds no LoRA weights"
        raise WeightsError(f"{path} {rest}: give a file in the layout of diffusers or kohya")
    return LoraFile(path=path, scale=options.lora_scale, networks=layers)


def _scaled(path: Path, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """With kohya's alphas in the matrices."""
    odd = [key for key in tensors if key.endswith("dora_scale")]
    if odd:
        raise WeightsError(f"{path} is not plain LoRA ({odd[0]}): give one that is")
    found = {key: value for key, value in tensors.items() if not key.endswith(".alpha")}
    for key in tensors.keys() - found.keys():
        layer = key.removesuffix(".alpha")
        up, down = f"{layer}.lora_up.weight", f"{layer}.lora_down.weight"
        if up not in found or down not in found:
            raise WeightsError(f"{path} has {key} and no {down}: give a file of plain LoRA weights")
        found[up] = found[up].float() * (float(tensors[key]) / max(len(found[down]), 1))
    return found


def _in_peft_names(
    path: Path, tensors: Mapping[str, Tensor], networks: Sequence[str], unet: Mapping[str, Any] | None
) -> dict[str, Tensor]:
    """NETWORK.MODULE.lora_A.weight and lora_B."""
    found: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = _of_kohyas_text(key) or _of_peft(path, key, networks)
        (found if name else others)[name or key] = value
    return found | (_by_diffusers(path, others, unet) if others else {})


def _of_kohyas_text(key: str) -> str | None:
    """Of `lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight`, which may stand alone."""
    match = _KOHYAS_TEXT.fullmatch(key)
    if match is None:
        return None
    number, layer, block, part, side = match.groups()
    network = "text_encoder_2" if number == "2" else "text_encoder"
    matrix = "lora_A" if side == "down" else "lora_B"
    return f"{network}.text_model.encoder.layers.{layer}.{block}.{part}.{matrix}.weight"


_KOHYAS_TEXT = re.compile(
    r"lora_te([12]?)_text_model_encoder_layers_(\d+)_(self_attn|mlp)_(\w+?)\.lora_(down|up)\.weight"
)
_PEFT = "base_model.model."
_CLIPS = re.compile(r"(^|\.)(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])\.")


def _of_peft(path: Path, key: str, networks: Sequence[str]) -> str | None:
    """Of a file by peft's save_pretrained, which does not say what network it is of: its modules do."""
    if not key.startswith(_PEFT):
        return None
    inner = key.removeprefix(_PEFT)
    if inner.partition(".")[0] in networks:
        return inner
    texts = [name for name in networks if name.startswith("text_encoder")]
    if not _CLIPS.search(inner):
        return f"{networks[0]}.{inner}"
    if len(texts) != 1:
        raise WeightsError(
            f"{path} is for one of {', '.join(texts) or 'no text encoder here'} and does not say which: put "
            "that before its names, as in text_encoder.text_model...."
        )
    return f"{texts[0]}.{inner}"


def _by_diffusers(
    path: Path, tensors: Mapping[str, Tensor], unet: Mapping[str, Any] | None
) -> dict[str, Tensor]:
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    config = SimpleNamespace(**unet) if unet else None
    state, _ = StableDiffusionXLLoraLoaderMixin.lora_state_dict(dict(tensors), unet_config=config)
    found: dict[str, Tensor] = {}
    for name in {key.partition(".")[0] for key in state}:
        part = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{name}.")}
        if all(".lora_A." in key or ".lora_B." in key for key in part):
            pass
        elif name.startswith("text_encoder"):
            try:
                part = convert_state_dict_to_peft(convert_state_dict_to_diffusers(part))
            except ValueError as error:
                raise WeightsError(
                    f"{path} has names such as {min(part)[:80]!r}, which are neither peft's, diffusers' nor "
                    "kohya's: give a file in one of their layouts"
                ) from error
        else:
            part = convert_unet_state_dict_to_peft(part)
        found |= {f"{name}.{key}": value for key, value in part.items()}
    return found


def _adapter_config(path: Path, networks: Sequence[str]) -> dict[str, Any]:
    """What peft's save_pretrained writes beside a file, for every network: its tensors have no alphas."""
    beside = path.with_name("adapter_config.json")
    if path.name != "adapter_model.safetensors" or not beside.is_file():
        return {}
    said = read_json(beside)
    odd = [key for key in ("use_dora", "use_rslora") if said.get(key)]
    if odd:
        raise WeightsError(f"{path} is not plain LoRA ({odd[0]}): give one that is")
    keys = [key for key in ("lora_alpha", "alpha_pattern") if key in said]
    return {f"{name}.{key}": said[key] for name in networks for key in keys}


def _metadata(path: Path) -> dict[str, Any]:
    """peft's configuration as diffusers writes it into a file: NETWORK.lora_alpha and so on."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        found: dict[str, Any] = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    odd = [key for key, value in found.items() if value and key.endswith((".use_dora", ".use_rslora"))]
    if odd:
        raise WeightsError(f"{path} is not plain LoRA ({odd[0]}): give one that is")
    return found


def _said_alpha(said: Mapping[str, Any], name: str, module: str, rank: int) -> float:
    """Alpha of a module; without a word about it, the rank, as diffusers does."""
    for pattern, alpha in (said.get(f"{name}.alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return float(alpha)
    return float(said.get(f"{name}.lora_alpha", rank))
