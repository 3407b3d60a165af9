"""MVDream: four views of an object denoised together, each told its camera (Shi et al. 2023).

Stable Diffusion 2.1's UNet, as diffusers has it, with two changes: self-attention sees the tokens of all
views of a group, and an embedding of the camera is added to the time's. (Published: `MultiViewUNetModel`.)

Shapes: B views, those of a group one after the other, H x W pixels, h x w latents, D the width of the text
encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from splatgen.config import PriorOptions
from splatgen.models import weights
from splatgen.models.budget import LoadOptions
from splatgen.models.loading import (
    Lazy,
    compiled,
    component,
    explained,
    frozen,
    placed,
    quiet,
    read_json,
    read_tensors,
    torch_dtype,
)
from splatgen.models.paging import home
from splatgen.models.weights import ModelFiles, WeightsError
from splatgen.priors import Conditioning, mvdream_weights
from splatgen.priors.latent import (
    Latents,
    TableSchedule,
    check_match,
    clip_tokens,
    full,
    tiny_autoencoder,
    trained_side,
)
from splatgen.priors.lora import LoraAdapter
from splatgen.scene.cameras import Cameras
from splatgen.scene.uploads import upload

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from diffusers.models.attention_processor import Attention
    from transformers import CLIPTextModel, CLIPTokenizer

NAME = "mvdream"
FILE = "sd-v2.1-base-4view.pt"
VIEWS = 4
BETAS = (0.00085, 0.012)  # of the first and the last of 1000 times; their roots rise linearly


class MVDreamPrior:
    """Denoises groups of four views, or, without cameras, single images as it was also trained to.

    Without cameras (`camera=False`) it is what the published code calls a batch of one frame: no camera
    embedding, and no attention between images, so `views` is 1.
    """

    prediction: Literal["epsilon"] = "epsilon"
    x_range: tuple[float, float] | None = None

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: Lazy[CLIPTextModel],
        tokenizer: CLIPTokenizer,
        camera: bool = True,
        name: str = NAME,
        source: str = "",
        tiny: AutoencoderTiny | None = None,  # decodes previews
        decode: int = 0,  # latents decoded at once where no gradient is asked; 0 takes all
    ) -> None:
        """Take networks that are on their device, freeze them, and let the UNet's attention see all views.

        Raises ValueError where they do not fit together.
        """
        check_match(name, "latent channels", unet.config.in_channels, vae.config.latent_channels)
        width = text_encoder.get().config.hidden_size
        check_match(name, "text features", unet.config.cross_attention_dim, width)
        self.name, self.source = name, source
        self.resolution = trained_side(unet, vae)
        self.camera, self.views = camera, VIEWS if camera else 1
        self.unet, self.vae = frozen(unet), frozen(vae)
        self._text, self._tokenizer = text_encoder, tokenizer
        self._latents = Latents(vae, resolution=self.resolution, tiny=tiny, at_once=decode)
        self._schedule = TableSchedule(name, alphas_cumprod(), home(unet))
        if camera:
            look_across(unet, VIEWS)
        else:
            unet.class_embedding = None  # diffusers demands a class of a network that has one

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1 to latents [B, 4, h, w], resized to the model's side first."""
        return self._latents.encode(images)

    def decode(self, x: Tensor) -> Tensor:
        return self._latents.decode(x)

    def preview(self, x: Tensor) -> Tensor:
        return self._latents.preview(x)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._schedule.alpha_sigma(t)

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """States [B, 77, D] of the last layer but one, normed; padded with token 0, as open_clip does.

        Raises ValueError for a prompt of more than 75 tokens.
        """
        tokens = clip_tokens(self._tokenizer, prompts, name=self.name)
        tokens, encoder = zero_padded(tokens, self._tokenizer.eos_token_id), self._text.get()
        with torch.no_grad():
            found = encoder(tokens.to(encoder.device))
        return {"states": full(found.last_hidden_state).to(home(self.unet))}

    def release(self) -> None:
        """Let the text encoder go; the next `embed` loads it again."""
        self._text.release()

    def predict(self, x_t: Tensor, t: Tensor, condition: Conditioning, cameras: Cameras) -> Tensor:
        """The noise in x_t [B, 4, h, w] at t [B]; ValueError where the views don't fill whole groups."""
        if len(x_t) % self.views:
            raise ValueError(
                f"{self.name} denoises {self.views} views together and got {len(x_t)}: "
                f"give a multiple of {self.views}"
            )
        dtype = self.unet.dtype
        told = upload(camera_numbers(cameras), x_t.device).to(dtype) if self.camera else None
        out: Tensor = self.unet(
            x_t.to(dtype),
            self._schedule.rows(t),
            encoder_hidden_states=condition["states"].to(dtype),
            class_labels=told,
        ).sample
        return out.to(x_t.dtype)

    def adapter(self, rank: int, generator: torch.Generator) -> LoraAdapter:
        return LoraAdapter(self.unet, self.predict, rank=rank, generator=generator)


def alphas_cumprod() -> Tensor:
    """The schedule that it was trained on, [1000]."""
    roots = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, 1000, dtype=torch.float64)
    return (1.0 - roots**2).cumprod(0)


def camera_numbers(cameras: Cameras) -> Tensor:
    """What MVDream is told of each camera: the camera's axes and place in its own world, [B, 16].

    Its world has Z up; matrices are camera to world with OpenGL's camera axes, the place at distance 1
    wherever the camera is (published: `convert_opengl_to_blender`, `normalize_camera`). Our front, azimuth 0
    on +Z, is its +X, and azimuths grow the same way round: (x, y, z) of ours is (z, x, y) there, and our
    azimuth a is a + 90 of the published `get_camera`.

    That +X is the front: MVDream-threestudio passes the cameras of threestudio as they are, whose front view
    is azimuth 0 on +X; the published t2i.py starts at azimuth 90; DreamGaussian shows azimuth 90 first, for
    "the second view is the front view". Its makers aligned no object by hand (MVDream issue 19), so which
    side is the front is a habit of the data.
    """
    c2w = cameras.c2w[:, [2, 0, 1, 3]]  # rows: the axes of the world
    place = c2w[:, :3, 3]
    c2w[:, :3, 3] = place / (place.norm(dim=1, keepdim=True) + 1e-8)
    return c2w.flatten(1)


def zero_padded(tokens: Tensor, end: int) -> Tensor:
    """Token numbers [B, N] with 0 after the first end of each row."""
    ends = tokens == end
    return tokens.masked_fill(ends.cumsum(1) > ends.long(), 0)


def look_across(unet: UNet2DConditionModel, views: int) -> None:
    """Let self-attention see all views of a group; what reads the prompt stays with its view."""
    unet.set_attn_processor(
        {
            name: AcrossViews(views) if ".attn1." in name else processor
            for name, processor in unet.attn_processors.items()
        }
    )


class AcrossViews:
    """Attention over the tokens of all views of a group together: [G views, N, C] as [G, views N, C]."""

    def __init__(self, views: int) -> None:
        from diffusers.models.attention_processor import AttnProcessor2_0

        self._views, self._attend = views, AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        rows, count, width = hidden_states.shape
        together = hidden_states.reshape(rows // self._views, self._views * count, width)
        out: Tensor = self._attend(attn, together)
        return out.reshape(rows, count, width)


@dataclass(frozen=True, kw_only=True)
class Networks:
    """What a place holds, on the CPU."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: Callable[[], CLIPTextModel]
    tokenizer: Path


def load(options: PriorOptions, load_options: LoadOptions) -> MVDreamPrior:
    """MVDream on Stable Diffusion 2.1: the published file, or a folder in diffusers' layout.

    In a folder the UNet may have diffusers' names or the published ones (`mvdream_diffusers` has those).
    Raises WeightsError for what is missing, damaged or of another architecture.
    """
    found = (
        weights.given(options.model, options.revision)
        if options.model
        else weights.find(NAME, load_options.weights)
    )
    networks = _networks(found, load_options)
    with explained(MVDreamPrior, found.main):
        return MVDreamPrior(
            unet=compiled(placed(networks.unet, load_options), load_options),
            vae=placed(networks.vae, load_options),
            text_encoder=Lazy(
                lambda: placed(networks.text_encoder(), load_options, device=load_options.device)
            ),
            tokenizer=_tokenizer(networks.tokenizer),
            camera=options.camera,
            source=found.source,
            tiny=tiny_autoencoder("taesd", options, load_options),
            decode=load_options.decode,
        )


def _networks(found: ModelFiles, load_options: LoadOptions) -> Networks:
    place = found.main
    file = place if place.is_file() else place / FILE
    if file.is_file():
        return _from_file(
            file, found.folders.get("tokenizer") or _words(file.parent, load_options), load_options
        )
    if (place / "unet").is_dir():
        return _from_folder(place, load_options)
    raise WeightsError(
        f"{place} holds neither {FILE} nor a folder unet: give the published file, or a folder in "
        "diffusers' layout"
    )


def _from_file(file: Path, tokenizer: Path, load_options: LoadOptions) -> Networks:
    checkpoint, dtype = mvdream_weights.read(file), torch_dtype(load_options)
    return Networks(
        unet=mvdream_weights.load_unet(checkpoint.unet, file, dtype),
        vae=mvdream_weights.load_vae(checkpoint.vae, file, dtype),
        text_encoder=lambda: mvdream_weights.load_text(mvdream_weights.read(file).text, file, dtype),
        tokenizer=tokenizer,
    )


def _from_folder(place: Path, load_options: LoadOptions) -> Networks:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    dtype = torch_dtype(load_options)
    _check_schedule(place / "scheduler" / "scheduler_config.json")
    if read_json(place / "unet" / "config.json").get("_class_name") == "MultiViewUNetModel":
        files = [*(place / "unet").glob("*.safetensors"), *(place / "unet").glob("*.bin"), place / "unet"]
        unet = mvdream_weights.load_unet(read_tensors(files[0]), files[0], dtype)
    else:
        unet = component(UNet2DConditionModel, place, "unet", dtype=dtype)
    if unet.config.projection_class_embeddings_input_dim != mvdream_weights.CAMERA:
        raise WeightsError(f"the UNet in {place} is told no camera: give weights of MVDream")
    return Networks(
        unet=unet,
        vae=component(AutoencoderKL, place, "vae", dtype=dtype),
        text_encoder=lambda: component(CLIPTextModel, place, "text_encoder", dtype=dtype),
        tokenizer=place / "tokenizer",
    )


def _check_schedule(path: Path) -> None:
    """Raise WeightsError unless a folder's schedule, if it has one, is MVDream's."""
    if not path.is_file():
        return
    found = read_json(path)
    wanted = {
        "beta_start": BETAS[0],
        "beta_end": BETAS[1],
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
    }
    for name, value in wanted.items():
        if found.get(name, value) != value:
            raise WeightsError(
                f"{path} has {name} {found[name]}, and MVDream {value}: give weights of MVDream"
            )


def _words(beside: Path, load_options: LoadOptions) -> Path:
    """CLIP's tokenizer for a file that came without: next to it, or where the published one is."""
    part = next(part for part in weights.PUBLISHED[NAME].parts if part.folder == "tokenizer")
    own = [beside / "tokenizer"]
    if load_options.weights:
        own.append(Path(load_options.weights).expanduser() / NAME / "tokenizer")
    place = next((folder for folder in own if not weights.missing(folder, part.files)), None)
    place = place or weights.cached(part.repo, part.revision)
    if place is None:
        raise WeightsError(
            f"{beside} has no folder tokenizer: put CLIP's there, or `splatgen fetch {NAME} --small` gets it"
        )
    return place


def _tokenizer(folder: Path) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    if weights.missing(folder, ("vocab.json|tokenizer.json",)):
        raise WeightsError(f"{folder} has no vocab.json: fetch the model whole")
    with explained(CLIPTokenizer, folder), quiet():
        # Stable Diffusion 2.1's own pads with "!", which would then be padding in a prompt, too.
        found: CLIPTokenizer = CLIPTokenizer.from_pretrained(
            folder, local_files_only=True, pad_token="<|endoftext|>"
        )
    return found
