"""Weights as others share them: what a single file predicts, LoRA of peft and kohya, and broken ones."""

import json
import logging

import pytest
import tiny_diffusion as tiny
import torch
from safetensors.torch import save_file

from splatgen.config import PriorOptions
from splatgen.models.budget import LoadOptions
from splatgen.models.weights import WeightsError
from splatgen.priors import load_prior

FAMILIES = ["sd15", "sd21", "sdxl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("weights")
    for family in FAMILIES:
        tiny.write_folder(found / family, family)
    return found


def load(folder, name="sd15", **options):
    return load_prior(name, PriorOptions(**options), LoadOptions(weights=str(folder)))


def single(tmp_path, family, extra=None, metadata=None, suffix=".safetensors"):
    tensors = {**tiny.single_file(family, tiny.networks(family)), **(extra or {})}
    path = tmp_path / f"{family}{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": tensors}, path)
    else:
        save_file(tensors, path, metadata=metadata)
    return str(path)


# What is predicted


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("extra", "metadata", "suffix", "kind"),
    [
        ({"v_pred": torch.zeros(0)}, None, ".safetensors", "velocity"),
        ({"v_pred": torch.zeros(0)}, None, ".ckpt", "velocity"),
        ({}, {"modelspec.prediction_type": "v"}, ".safetensors", "velocity"),
        ({}, {"modelspec.prediction_type": "V-Prediction"}, ".safetensors", "velocity"),
        ({}, {"modelspec.prediction_type": "epsilon"}, ".safetensors", "epsilon"),
        ({}, {"modelspec.prediction_type": "?"}, ".safetensors", "epsilon"),
        ({}, None, ".safetensors", "epsilon"),
    ],
)
def test_a_single_file_predicts_what_it_says(folder, tmp_path, caplog, family, extra, metadata, suffix, kind):
    path = single(tmp_path, family, extra, metadata, suffix)
    with caplog.at_level(logging.WARNING):
        prior = load(folder, family, model=path)
    assert prior.prediction == kind
    says = bool(extra) or (metadata or {}).get("modelspec.prediction_type") not in (None, "?")
    what = "v" if kind == "velocity" else "noise" if says else f"what {family} does"
    why = "as it says" if says else "for it does not say"
    assert prior.source == f"{path}, which predicts {what}, {why}"
    assert f"is taken to predict {what}, {why}" in caplog.text
    assert ("768-v" in caplog.text) == (family == "sd21" and not says)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_option_has_the_last_word(folder, tmp_path, family):
    path = single(tmp_path, family, {"v_pred": torch.zeros(0)})
    asked = load(folder, family, model=path, prediction="epsilon")
    assert asked.prediction == "epsilon"
    assert asked.source.endswith("which predicts noise, as asked for")
    assert load(folder, family, prediction="v").prediction == "velocity"
    assert load(folder, family).prediction == "epsilon"


def test_it_matters(folder, tmp_path):
    """The same network under the two readings gives other noise: v is not passed on as if it were noise."""
    from splatgen.scene.cameras import turntable

    x, t, cameras = torch.randn(1, 4, 8, 8), torch.tensor([0.5]), turntable(1, size=16)
    path = single(tmp_path, "sd15")
    noise, v = (load(folder, model=path, prediction=p) for p in ("epsilon", "v"))
    told = noise.embed(["a"])
    alpha, sigma = noise.alpha_sigma(t)
    expected = sigma * x + alpha * noise.predict(x, t, told, cameras)
    assert torch.allclose(v.predict(x, t, told, cameras), expected, atol=1e-5)


def test_a_schedule_that_ends_in_pure_noise(folder, tmp_path):
    """ztsnr (Lin et al. 2023): the last signal is next to nothing, the first as it was."""
    usual = load(folder)
    path = single(tmp_path, "sd15", {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)})
    prior = load(folder, model=path)
    last, first = torch.tensor([1.0]), torch.tensor([0.0])
    assert float(prior.alpha_sigma(last)[0]) == pytest.approx(2.0**-12, rel=1e-3)
    assert float(usual.alpha_sigma(last)[0]) > 0.05
    assert torch.allclose(prior.alpha_sigma(first)[0], usual.alpha_sigma(first)[0], atol=1e-4)
    tiny.write_folder(tmp_path / "sd15", "sd15")
    tiny.write_scheduler(tmp_path / "sd15", "sd15", rescale_betas_zero_snr=True)
    assert torch.equal(load(tmp_path).alpha_sigma(last)[0], prior.alpha_sigma(last)[0])


# Weights that are not finite


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_is_not_finite_is_refused(folder, tmp_path, family, value):
    tensors = tiny.single_file(family, tiny.networks(family))
    key = next(key for key in tensors if "middle_block" in key and key.endswith("weight"))
    tensors[key] = tensors[key].clone()
    tensors[key].flatten()[0] = value
    path = tmp_path / "nan.safetensors"
    save_file(tensors, path)
    with pytest.raises(WeightsError, match=r"nan\.safetensors has 1 of .* that are not finite in float32"):
        load(folder, family, model=str(path))


def test_a_folder_that_is_not_finite_is_refused(tmp_path):
    from safetensors.torch import load_file

    tiny.write_folder(tmp_path / "sd15", "sd15")
    path = next((tmp_path / "sd15" / "vae").glob("*.safetensors"))
    tensors = load_file(path)
    tensors["decoder.conv_in.bias"][2] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"vae has 1 of 8 numbers in decoder\.conv_in\.bias"):
        load(tmp_path)


def test_large_numbers_are_no_broken_ones(tmp_path):
    """In half precision, they overflow when they are added up."""
    from splatgen.models.loading import check_finite

    network = torch.nn.Linear(100, 100).half()
    torch.nn.init.constant_(network.weight, 60_000.0)
    check_finite(network, tmp_path)
    with torch.no_grad():
        network.weight[3, 4] = float("nan")
    with pytest.raises(WeightsError, match=r"has 1 of 10,000 numbers in weight .* not finite in float16"):
        check_finite(network, tmp_path)


# LoRA


def merged(folder, path, name="sd15", scale=1.0):
    """What a file adds to each network, by its modules' names."""
    usual = load(folder, name)
    styled = load(folder, name, lora=str(path), lora_scale=scale)
    parts = ("unet", "text_encoder") if name != "sdxl" else ("unet",)
    added = {}
    for part in parts:
        before = dict(getattr(usual, part).named_parameters())
        for key, value in getattr(styled, part).named_parameters():
            if not torch.equal(value, before[key]):
                added[part, key] = value - before[key]
    return added


def pefts(network, endings, rank=2):
    """As peft's save_pretrained names them, and what they add when alpha is the rank."""
    tensors, added = {}, {}
    for name, module in network.named_modules():
        if name.endswith(endings):
            a, b = torch.randn(rank, module.in_features), torch.randn(module.out_features, rank)
            tensors[f"base_model.model.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{name}.lora_B.weight"] = b
            added[f"{name}.weight"] = b @ a
    return tensors, added


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize("alpha", [None, 6])
def test_pefts_own_files_find_their_network(folder, tmp_path, part, alpha):
    network = tiny.networks("sd15")[part]
    tensors, expected = pefts(network, ("to_q", "to_v") if part == "unet" else ("q_proj", "fc1"))
    path = tmp_path / "adapter_model.safetensors"
    save_file(tensors, path)
    if alpha is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": alpha}))
    added = merged(folder, path)
    assert {key[0] for key in added} == {part}
    names = {key[1].removeprefix("text_model."): value for key, value in added.items()}
    assert names.keys() == {name.removeprefix("text_model.") for name in expected}
    for name, value in expected.items():
        factor = 1.0 if alpha is None else alpha / 2
        assert torch.allclose(names[name.removeprefix("text_model.")], factor * value, atol=1e-4)


def test_pefts_own_writer(folder, tmp_path):
    """The real thing: a wrapped network, and what save_pretrained makes of it."""
    from peft import LoraConfig, get_peft_model

    network = tiny.networks("sd15")["unet"]
    wrapped = get_peft_model(network, LoraConfig(r=2, lora_alpha=6, target_modules=["to_q"]))
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn_like(p))
    wrapped.save_pretrained(tmp_path)
    added = merged(folder, tmp_path / "adapter_model.safetensors")
    layers = {n: m for n, m in wrapped.base_model.model.named_modules() if n.endswith("to_q")}
    assert len(added) == len(layers) > 3
    for name, layer in layers.items():
        assert torch.allclose(added["unet", f"{name}.weight"], layer.get_delta_weight("default"), atol=1e-4)


def test_peft_for_one_of_two_text_encoders_must_say_which(folder, tmp_path):
    tensors, _ = pefts(tiny.networks("sdxl")["text_encoder"], ("q_proj",))
    path = tmp_path / "adapter_model.safetensors"
    save_file(tensors, path)
    with pytest.raises(WeightsError, match="is for one of text_encoder, text_encoder_2 and does not say"):
        load(folder, "sdxl", lora=str(path))
    named = {key.replace("model.", "model.text_encoder_2.", 1): value for key, value in tensors.items()}
    named = {key.replace("base_model.text_encoder_2.model.", "base_model.model.text_encoder_2."): value
             for key, value in named.items()}  # fmt: skip
    save_file(named, path)
    prior, usual = load(folder, "sdxl", lora=str(path)), load(folder, "sdxl")
    assert not torch.equal(prior.embed(["a"])["pooled"], usual.embed(["a"])["pooled"])


KOHYA = "lora_te_text_model_encoder_layers_{}_{}"


@pytest.mark.parametrize("layer", ["self_attn_q_proj", "self_attn_out_proj", "mlp_fc1", "mlp_fc2"])
def test_kohyas_files_of_a_text_encoder_alone(folder, tmp_path, layer):
    sizes = {"mlp_fc1": (16, 32), "mlp_fc2": (32, 16)}.get(layer, (16, 16))
    key = KOHYA.format(1, layer)
    a, b = torch.randn(2, sizes[0]), torch.randn(sizes[1], 2)
    tensors = {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b, f"{key}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "te.safetensors")
    added = merged(folder, tmp_path / "te.safetensors", scale=0.5)
    ((_, name), value) = next(iter(added.items()))
    block, part = layer.rsplit("_", 1) if layer.startswith("mlp") else ("self_attn", layer[10:])
    assert len(added) == 1
    assert name.removeprefix("text_model.") == f"encoder.layers.1.{block}.{part}.weight"
    assert torch.allclose(value, 0.5 * 0.5 * b @ a, atol=1e-4)


def test_a_lora_file_that_is_not_finite_is_refused(folder, tmp_path):
    tensors, _ = pefts(tiny.networks("sd15")["unet"], ("to_q",))
    tensors[min(tensors)][0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(WeightsError, match=r"nan\.safetensors has numbers for .*to_q that are not finite"):
        load(folder, lora=str(tmp_path / "nan.safetensors"))


@pytest.mark.parametrize("said", ["use_dora", "use_rslora"])
def test_what_a_config_beside_a_file_rules_out(folder, tmp_path, said):
    tensors, _ = pefts(tiny.networks("sd15")["unet"], ("to_q",))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({said: True}))
    with pytest.raises(WeightsError, match=f"is not plain LoRA .{said}"):
        load(folder, lora=str(tmp_path / "adapter_model.safetensors"))


def test_nothing_is_fetched_again_that_is_whole(folder, tmp_path):
    """Names of a layout that nobody here knows."""
    key = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    save_file({f"{key}.odd.weight": torch.zeros(2, 2)}, tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError, match="which are neither peft's, diffusers' nor kohya's") as caught:
        load(folder, lora=str(tmp_path / "odd.safetensors"))
    assert "fetch it again" not in str(caught.value)
