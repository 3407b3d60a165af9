"""Shap-E's start on diffusers' and transformers' own classes, saved as they were published, with few weights.

The tiny renderer's weights are set by hand: an object that is tall, red on top and green at its front.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HeunDiscreteScheduler, PriorTransformer
from diffusers.pipelines.shap_e.renderer import ShapERenderer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from splatgen.config import Config, SplatOptions
from splatgen.loop.initial_splats import starting_splats
from splatgen.models import loading, shap_e
from splatgen.models.budget import LoadOptions
from splatgen.models.weights import WeightsError
from splatgen.rasterizer import render
from splatgen.runs.rng import rng
from splatgen.scene.cameras import orbit
from splatgen.scene.splats import Splats, check

WIDTH, UNITS = 32, 8  # of a latent; of the renderer's layers
EDGES = ((0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7), (0, 4), (1, 5), (2, 6), (3, 7))
BINARY = "shap_e_renderer/diffusion_pytorch_model.bin"


def marching_table() -> tuple[Tensor, Tensor]:
    """For each sign of a cube's corners (bit 1 is x, 2 is y, 4 is z), a fan over the edges that are cut."""
    cases, masks = torch.zeros(256, 5, 3, dtype=torch.long), torch.zeros(256, 5, dtype=torch.bool)
    places = torch.tensor([[(c >> axis) & 1 for axis in range(3)] for c in range(8)], dtype=torch.float64)
    for signs in range(1, 255):
        cut = [n for n, (a, b) in enumerate(EDGES) if (signs >> a & 1) != (signs >> b & 1)]
        middles = torch.stack([places[list(EDGES[n])].mean(0) for n in cut])
        inside = places[[c for c in range(8) if signs >> c & 1]].mean(0)
        outside = places[[c for c in range(8) if not signs >> c & 1]].mean(0)
        normal = torch.nn.functional.normalize(outside - inside + 1e-3, dim=0)
        side = torch.linalg.cross(normal, torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64))
        away = middles - middles.mean(0)
        angle = torch.atan2(away @ torch.linalg.cross(normal, side), away @ side)
        ring = [cut[n] for n in angle.argsort()]
        for n, (a, b) in enumerate(list(itertools.pairwise(ring[1:]))[:5]):
            cases[signs, n], masks[signs, n] = torch.tensor([ring[0], a, b]), True
    return cases, masks


def tiny_renderer(level: float = 2.325) -> ShapERenderer:
    """Inside where cos x + cos y + cos(z) / 2 > level; red is its z and green its -y."""
    network = ShapERenderer(
        param_shapes=((UNITS, 93), *[(UNITS, UNITS)] * 3), d_latent=WIDTH, d_hidden=UNITS, n_output=12
    )
    state = network.state_dict()
    for value in state.values():
        value.zero_()
    first = torch.zeros(UNITS, 93)
    first[0, 48:51] = torch.tensor([1.0, 1.0, 0.5])  # cosines of x, y, z
    first[1, 2], first[2, 1] = 1.0, -1.0
    projections = [f"params_proj.projections.nerstf__mlp__{n}__weight" for n in range(4)]
    for name, matrix in zip(projections, [first, *[torch.eye(UNITS)] * 3], strict=True):
        state[f"{name}.proj.bias"].copy_(matrix.flatten())
    state[f"{projections[1]}.proj.weight"].normal_(generator=rng(0, 0, "proj"))
    state[f"{projections[1]}.norm.weight"].fill_(2e-4)  # the latents change the object a little
    state["mlp.mlp.0.bias"][:3] = 20.0  # where SiLU is the identity
    state["mlp.mlp.4.weight"][:, :UNITS] = torch.eye(UNITS)
    state["mlp.mlp.5.weight"].copy_(torch.eye(UNITS))
    last, bias = state["mlp.mlp.6.weight"], state["mlp.mlp.6.bias"]
    last[0, 0], bias[0] = 1.0, -20.0 - level
    last[3, 1] = last[4, 2] = 8.0
    bias[3:6] = torch.tensor([-160.0, -160.0, -4.0])
    cases, masks = marching_table()
    state["mesh_decoder.cases"].copy_(cases)
    state["mesh_decoder.masks"].copy_(masks)
    return network


def save_tokenizer(folder: Path) -> None:
    """CLIP's files as they were published in 2023, with bytes for words."""
    letters = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 256))]
    letters += [chr(256 + n) for n in range(256 - len(letters))]
    start, end = "<|startoftext|>", "<|endoftext|>"
    words = [*letters, *(f"{letter}</w>" for letter in letters), start, end]
    special = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end}
    settings = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def save_networks(folder: Path) -> None:
    torch.manual_seed(0)
    prior = PriorTransformer(
        num_attention_heads=2, attention_head_dim=16, num_layers=1, embedding_dim=WIDTH, num_embeddings=32,
        embedding_proj_dim=32, time_embed_dim=64, clip_embed_dim=2 * WIDTH, additional_embeddings=0,
        time_embed_act_fn="gelu", norm_in_type="layer", encoder_hid_proj_type=None, added_emb_type=None,
    )  # fmt: skip
    prior.half().save_pretrained(folder / "prior", variant="fp16")
    text = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=514, hidden_size=32, intermediate_size=64, num_hidden_layers=1, projection_dim=32,
            num_attention_heads=2, bos_token_id=512, eos_token_id=513, pad_token_id=513,
        )
    )  # fmt: skip
    text.half().save_pretrained(folder / "text_encoder", variant="fp16")
    path = folder / "text_encoder" / "model.fp16.safetensors"
    positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}  # as older versions saved it
    save_file({**load_file(path), **positions}, path, metadata={"format": "pt"})
    HeunDiscreteScheduler(
        beta_schedule="exp", num_train_timesteps=1024, prediction_type="sample", use_karras_sigmas=True,
        clip_sample=True, clip_sample_range=1.0,
    ).save_pretrained(folder / "scheduler")  # fmt: skip


def save_renderer(folder: Path, network: ShapERenderer) -> None:
    """As it is on the hub: a pickle of tensors."""
    network.save_config(folder / "shap_e_renderer")
    torch.save(network.state_dict(), folder / BINARY)


@pytest.fixture(autouse=True, scope="module")
def _coarse() -> Iterator[None]:
    """Fewer steps and points than published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shap_e, "STEPS", 3)
        patch.setattr(shap_e, "GRID", 24)
        yield


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of published models, which holds a tiny Shap-E."""
    weights = tmp_path_factory.mktemp("weights")
    folder = weights / "shap-e"
    save_networks(folder)
    save_tokenizer(folder / "tokenizer")
    save_renderer(folder, tiny_renderer())
    (folder / "model_index.json").write_text("{}")
    return weights


@pytest.fixture
def own(published: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(published, tmp_path / "weights")
    return tmp_path / "weights"


def start(weights: Path, **change: Any) -> Splats:
    values = {"prompt": "a boot", "init": "shap-e", "splats": SplatOptions(count=600, opacity=0.5)}
    return starting_splats(Config(**{**values, **change}), LoadOptions(weights=str(weights)))


def test_the_object_stands_upright_with_its_front_at_azimuth_0(published: Path) -> None:
    splats = start(published)
    check(splats)
    assert len(splats) == 600
    width, height, depth = (splats.means.amax(0) - splats.means.amin(0)).tolist()
    assert height > 1.2 * width
    assert height > 1.2 * depth
    views = orbit(torch.tensor([0.0, 180.0]), torch.zeros(2), size=32)
    front, back = render(splats, views, torch.zeros(3)).rgb  # [3, H, W] each
    red, green = front[0], front[1]
    assert red[:16].sum() > 3 * red[16:].sum()  # above
    assert green.sum() > 2 * back[1].sum()


def test_colours_are_as_displayed(published: Path) -> None:
    colors = shap_e.generate("a boot", LoadOptions(weights=str(published)), rng(0, 0, "shap-e")).colors
    blue = torch.sigmoid(torch.tensor(-4.0, dtype=torch.float64))  # what the network says, through its bias
    torch.testing.assert_close(colors[:, 2], blue.expand(len(colors)), atol=1e-4, rtol=0.0)


def test_the_seed_and_the_prompt_decide_and_nothing_else_does(published: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = start(published)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    for name, value in start(published).tensors().items():
        assert torch.equal(value, getattr(first, name))
    load_options = LoadOptions(weights=str(published))
    vertices = shap_e.generate("a boot", load_options, rng(0, 0, "shap-e")).vertices
    for other in (("a boot", 1), ("a shoe", 0)):
        found = shap_e.generate(other[0], load_options, rng(other[1], 0, "shap-e")).vertices
        assert found.shape != vertices.shape or not torch.equal(found, vertices)


def test_the_networks_are_gone_afterwards(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the garbage collector, which takes its time."""
    made: list[weakref.ref[Any]] = []
    for module, name in ((loading, "component"), (shap_e, "load_renderer")):
        load = getattr(module, name)

        def watched(*given: Any, load: Any = load, **options: Any) -> Any:
            network = load(*given, **options)
            made.append(weakref.ref(network))
            return network

        monkeypatch.setattr(module, name, watched)
    gc.disable()
    try:
        start(published)
        assert [network() for network in made] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_makes_nearly_the_same(published: Path, precision: Any) -> None:
    full, half = (
        shap_e.generate(
            "a boot", LoadOptions(weights=str(published), precision=p), rng(0, 0, "shap-e")
        ).vertices
        for p in ("float32", precision)
    )
    for corner in (Tensor.amin, Tensor.amax):
        torch.testing.assert_close(corner(half, 0), corner(full, 0), atol=0.02, rtol=0.0)


def test_a_renderer_in_safetensors_is_taken_too(published: Path, own: Path) -> None:
    (own / "shap-e" / BINARY).unlink()
    tiny_renderer().save_pretrained(own / "shap-e" / "shap_e_renderer")
    assert torch.equal(shap_e.load_renderer(own / "shap-e").mesh_decoder.cases, marching_table()[0])
    torch.testing.assert_close(start(own).means, start(published).means)


def test_a_prompt_of_which_nothing_is_made_says_so(own: Path) -> None:
    save_renderer(own / "shap-e", tiny_renderer(level=3.0))
    with pytest.raises(ValueError, match=r"Shap-E made nothing of 'a boot': give another --seed"):
        start(own)


def test_a_prompt_is_not_cut(published: Path) -> None:
    with pytest.raises(ValueError, match="has 100 tokens and Shap-E reads 75: shorten it"):
        start(published, prompt="a" * 100)


@pytest.mark.parametrize(
    "path",
    [BINARY, "prior/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"],
)
def test_damaged_weights_are_named(own: Path, path: str) -> None:
    file = own / "shap-e" / path
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(WeightsError, match=file.parent.name):
        start(own)


@pytest.mark.parametrize("part", ["prior", "text_encoder", "shap_e_renderer", "tokenizer", "scheduler"])
def test_missing_parts_are_named(own: Path, part: str) -> None:
    shutil.rmtree(own / "shap-e" / part)
    with pytest.raises(WeightsError, match=part):
        start(own)


def test_weights_of_the_first_publication_lack_the_table_of_cubes(own: Path) -> None:
    """The folder `renderer` of the same repository is older, and random numbers would take its place."""
    state = {n: v for n, v in tiny_renderer().state_dict().items() if not n.startswith("mesh_decoder")}
    torch.save(state, own / "shap-e" / BINARY)
    with pytest.raises(WeightsError, match="lacks mesh_decoder"):
        start(own)


def test_nothing_but_tensors_is_read_from_the_pickle(own: Path) -> None:
    torch.save({"code": LoadOptions()}, own / "shap-e" / BINARY)
    with pytest.raises(WeightsError, match="more than tensors"):
        start(own)


def test_a_keep_without_weights_looks_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="splatgen fetch shap-e"):
        starting_splats(dataclasses.replace(Config(prompt="a boot"), init="shap-e"), LoadOptions())
