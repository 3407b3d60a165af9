"""A mesh for a prompt by Shap-E (Jun and Nichol 2023), on diffusers' and transformers' own classes.

    prompt -> CLIP -> diffusion of the weights of a small network -> its signed distances -> marching cubes

Shapes: V vertices, F triangles, L latents of a width of D.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from splatgen.models import loading, weights
from splatgen.models.budget import LoadOptions
from splatgen.models.weights import WeightsError
from splatgen.scene.colors import linear_to_srgb
from splatgen.scene.surface import Mesh

if TYPE_CHECKING:
    from diffusers.pipelines.shap_e.renderer import ShapERenderer

STEPS, GUIDANCE = 64, 15.0  # of the published examples
GRID = 128  # points a side at which distances are asked for
BATCH = 65_536  # of these points at once


def generate(prompt: str, load_options: LoadOptions, generator: torch.Generator) -> Mesh:
    """The mesh of a prompt, on the CPU.

    Every network is gone from the device afterwards. Raises ValueError for a prompt that is too long or of
    which nothing was made, WeightsError for weights that are missing or damaged.
    """
    folder = weights.find("shap-e", load_options.weights).main
    found = latents(folder, prompt, load_options, generator)
    let_go(load_options.device)
    renderer = load_renderer(folder).to(load_options.device)
    try:
        mesh = renderer.decode_to_mesh(found, load_options.device, grid_size=GRID, query_batch_size=BATCH)
    except (RuntimeError, ValueError) as error:  # which of them depends on the version of torch
        if "non-empty list" not in str(error):  # what torch.cat says when there is no vertex to colour
            raise
        advice = "give another --seed, or another --init"
        raise ValueError(f"Shap-E made nothing of {prompt[:60]!r}: {advice}") from error
    channels = torch.stack([mesh.vertex_channels[name] for name in "RGB"], -1)
    colors = linear_to_srgb(channels.double().cpu())  # made for a renderer that adds lamps
    result = Mesh(vertices=upright(mesh.verts.double().cpu()), faces=mesh.faces.cpu(), colors=colors)
    del renderer, mesh
    let_go(load_options.device)
    return result


def upright(vertices: Tensor) -> Tensor:
    """Vertices [V, 3] with +Z up and the front at -Y, as Blender has it, to +Y up and the front at +Z.

    The published renders start at -Y, where penguins show their bellies and cars their bonnets.
    """
    x, y, z = vertices.unbind(-1)
    return torch.stack([x, z, -y], -1)


def latents(folder: Path, prompt: str, load_options: LoadOptions, generator: torch.Generator) -> Tensor:
    """A sample for a prompt, [1, L, D] float32 on the device."""
    from diffusers import HeunDiscreteScheduler, PriorTransformer, ShapEPipeline
    from transformers import CLIPTextModelWithProjection

    # bfloat16 has too few digits for the steps of the sampler; the weights are published in float16.
    dtype = torch.float32 if load_options.precision == "float32" else torch.float16
    tokenizer = read_tokenizer(folder / "tokenizer", prompt)
    place = folder / "scheduler"
    with loading.explained(HeunDiscreteScheduler, place):
        scheduler = HeunDiscreteScheduler.from_pretrained(place, local_files_only=True)
    prior = loading.component(PriorTransformer, folder, "prior", dtype=dtype)
    words = loading.component(CLIPTextModelWithProjection, folder, "text_encoder", dtype=dtype)
    with loading.quiet():
        pipeline = ShapEPipeline(
            prior=prior.to(load_options.device),
            text_encoder=words.to(load_options.device),
            tokenizer=tokenizer,
            scheduler=scheduler,
            shap_e_renderer=None,  # loaded when the prior is gone
        )
        pipeline.set_progress_bar_config(disable=True)
        found: Tensor = pipeline(
            prompt,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=generator,
            output_type="latent",
        ).images
    return found.float()


def read_tokenizer(folder: Path, prompt: str) -> Any:
    """CLIP's tokenizer; raises ValueError for a prompt that it would have to cut."""
    from transformers import CLIPTokenizer

    with loading.explained(CLIPTokenizer, folder), loading.quiet():
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    count, most = len(tokenizer(prompt).input_ids), tokenizer.model_max_length
    if count > most:
        raise ValueError(
            f"the prompt {prompt[:40]!r}... has {count - 2} tokens and Shap-E reads {most - 2}: shorten it"
        )
    return tokenizer


def load_renderer(folder: Path) -> ShapERenderer:
    """The network that turns latents into a mesh, in float32: it takes sines of 2^14 times a position.

    It was published as `diffusion_pytorch_model.bin`, a pickle, of which nothing but tensors is read.
    """
    from diffusers.pipelines.shap_e.renderer import ShapERenderer

    place = folder / "shap_e_renderer"
    path = place / "diffusion_pytorch_model.bin"
    if any(place.glob("*.safetensors")):
        return loading.component(ShapERenderer, folder, "shap_e_renderer", dtype=torch.float32)
    if not path.is_file():
        raise WeightsError(f"{path} is missing: `splatgen fetch shap-e` completes it")
    with loading.explained(ShapERenderer, place), torch.random.fork_rng(devices=()):
        network = ShapERenderer.from_config(ShapERenderer.load_config(place, local_files_only=True))
    return loading.fill(network, loading.read_tensors(path), path)


def let_go(device: str) -> None:
    """Give back what dropped networks held on the device."""
    if device == "cuda":
        torch.cuda.empty_cache()
