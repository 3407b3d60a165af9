"""Where the networks of a diffusion prior come from: a folder in diffusers' layout, or a single file.

A single file holds tensors only: configurations, schedule and tokenizer are those of the published model that
it is made from. What it predicts, noise or v, may be another thing: some say so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from splatgen.config import PriorOptions
from splatgen.models import weights
from splatgen.models.budget import LoadOptions
from splatgen.models.loading import component, explained, quiet, read_json, read_tensors
from splatgen.models.weights import WeightsError
from splatgen.priors.single_file import from_single_file

N = TypeVar("N", bound=nn.Module)

STABLE_DIFFUSION, SDXL = "Stable Diffusion 1 or 2", "Stable Diffusion XL"
NAMES = {"epsilon": "epsilon", "v": "v_prediction"}  # of what is predicted, ours to diffusers'
LEAST_SNR = 2.0**-24  # of a schedule that ends in pure noise, as diffusers has it: ours divides by its root

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model's parts by the names that diffusers gives their folders."""

    base: Path  # the folder with configurations, schedule and tokenizers
    source: str
    tensors: Mapping[str, Tensor] | None = None  # of a single file
    path: Path  # the folder or the file with the weights
    prediction: str | None = None  # by diffusers' name; None is what the schedule says
    zero_snr: bool = False  # trained on the schedule rescaled to end in pure noise (Lin et al. 2023)

    def network(self, kind: type[N], part: str, *, dtype: torch.dtype) -> N:
        """A network on the CPU, frozen; raises WeightsError for one that is not whole."""
        if self.tensors is None:
            return component(kind, self.path, part, dtype=dtype)
        return from_single_file(kind, self.path, self.tensors, self.base / part, dtype=dtype)

    def schedule(self) -> tuple[Tensor, str]:
        """The schedule [T] that the model was trained on, and what it predicts, by diffusers' name."""
        from diffusers import DDPMScheduler

        settings = read_json(self.base / "scheduler" / "scheduler_config.json")
        kind = str(settings.get("_class_name", ""))
        if kind.startswith(("EDM", "CosineDPM", "Flow")):
            raise WeightsError(
                f"{self.base} has a schedule for {kind}, which is no table of betas: give another model"
            )
        with explained(DDPMScheduler, self.base / "scheduler"), quiet():
            changed = {"rescale_betas_zero_snr": True} if self.zero_snr else {}
            schedule = DDPMScheduler.from_config({**settings, **changed})
            table = schedule.alphas_cumprod
            alphas_cumprod = table.clamp(min=LEAST_SNR) if schedule.config.rescale_betas_zero_snr else table
            return alphas_cumprod, self.prediction or schedule.config.prediction_type

    def settings(self, part: str) -> dict[str, Any]:
        """The configuration of a network."""
        return read_json(self.base / part / "config.json")

    def zero_empty(self) -> bool:
        """Whether an empty prompt is all zeros, which is what diffusers takes for granted."""
        index = self.base / "model_index.json"
        return not index.is_file() or bool(read_json(index).get("force_zeros_for_empty_prompt", True))

    def tokenizer(self, part: str = "tokenizer") -> Any:
        """CLIP's tokenizer; raises WeightsError where files lack."""
        from transformers import CLIPTokenizer

        place = self.base / part
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            if not (place / name).is_file() and not (place / "tokenizer.json").is_file():
                raise WeightsError(f"{place} has no {name}: fetch the model whole")
        with explained(CLIPTokenizer, place), quiet():
            return CLIPTokenizer.from_pretrained(place, local_files_only=True)


def checkpoint(name: str, family: str, options: PriorOptions, load_options: LoadOptions) -> Checkpoint:
    """The published model of that name, or what the options name in its place.

    Raises WeightsError for a model that is not here, and for one of another family.
    """
    found = (
        weights.given(options.model, options.revision)
        if options.model
        else weights.find(name, load_options.weights)
    )
    path = found.main
    if path.is_dir():
        expect(path, family, folder_family(path))
        asked = NAMES.get(options.prediction)
        return Checkpoint(base=path, path=path, source=found.source, prediction=asked)
    with explained("weights", path):
        tensors = read_tensors(path)
        tensors = tensors.get("state_dict", tensors)
        expect(path, family, file_family(tensors))
    said = said_prediction(path, tensors)
    prediction = NAMES.get(options.prediction) or said
    return Checkpoint(
        base=_base(name, path, load_options),
        path=path,
        source=f"{found.source}{_told(name, path, prediction, asked=options.prediction != 'auto')}",
        tensors=tensors,
        prediction=prediction,
        zero_snr="ztsnr" in tensors,
    )


def said_prediction(path: Path, tensors: Mapping[str, Any]) -> str | None:
    """What a single file says that its network predicts, by diffusers' name; None where it says nothing.

    By the empty tensor v_pred, or by modelspec.prediction_type (Stability AI's model metadata).
    """
    from safetensors import safe_open

    if "v_pred" in tensors:
        return NAMES["v"]
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, framework="pt") as file:
        said = str((file.metadata() or {}).get("modelspec.prediction_type", "")).lower()
    kinds = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
    return kinds.get(said.replace("-", "_"))


def _told(name: str, path: Path, prediction: str | None, *, asked: bool) -> str:
    """Words for run.json about what a single file is taken to predict, which are logged, too."""
    what = "v" if prediction == NAMES["v"] else "noise" if prediction else f"what {name} does"
    why = "as asked for" if asked else "as it says" if prediction else "for it does not say"
    hint = " (a 768-v file needs --prior.prediction v)" if name == "sd21" and not prediction else ""
    _log.warning("%s is taken to predict %s, %s%s", path.name, what, why, hint)
    return f", which predicts {what}, {why}"


def expect(path: Path, family: str, found: str) -> None:
    """Raise WeightsError unless a model is of the family that was asked for."""
    if family != found:
        raise WeightsError(f"{path} holds {found}: give a model of {family}, or another prior")


def folder_family(folder: Path) -> str:
    """What a folder in diffusers' layout holds, in words."""
    if not (folder / "unet" / "config.json").is_file():
        index = folder / "model_index.json"
        said = read_json(index).get("_class_name") if index.is_file() else None
        return f"a {said}" if said else "no unet/config.json, so no such model in diffusers' layout"
    unet = read_json(folder / "unet" / "config.json")
    if unet.get("encoder_hid_dim"):
        return "DeepFloyd IF, or a model like it"
    if unet.get("class_embed_type") or unet.get("num_class_embeds"):
        return "a model that is told a class, or the embedding of a picture"
    if unet.get("in_channels") != unet.get("out_channels"):
        return shown_a_picture(unet["in_channels"])
    if unet.get("addition_embed_type") == "text_time":
        return SDXL if (folder / "text_encoder" / "config.json").is_file() else "the refiner of SDXL"
    return STABLE_DIFFUSION


def file_family(tensors: Mapping[str, Any]) -> str:
    """What a single file holds, in words."""
    first, last = (
        tensors.get(f"model.diffusion_model.{name}.weight") for name in ("input_blocks.0.0", "out.2")
    )
    if first is None or last is None:
        lora = any("lora" in key for key in tensors)
        return "LoRA weights (they go into prior.lora)" if lora else "no weights of a Stable Diffusion UNet"
    if first.shape[1] != last.shape[0]:
        return shown_a_picture(first.shape[1])
    for number, family in ((1, SDXL), (0, "the refiner of SDXL")):
        if any(key.startswith(f"conditioner.embedders.{number}.") for key in tensors):
            return family
    return STABLE_DIFFUSION


def shown_a_picture(channels: int) -> str:
    """A UNet that takes more than it gives."""
    if channels == 9:
        return "a model for inpainting"
    return f"a model that is shown a picture, too ({channels} channels in)"


def _base(name: str, path: Path, load_options: LoadOptions) -> Path:
    """The folder of the published model, of which the small files will do."""
    try:
        return weights.find(name, load_options.weights, small=True).main
    except WeightsError as error:
        raise WeightsError(f"{path.name} is a single file, without configuration, and {error}") from error
