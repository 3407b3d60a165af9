"""Every score with every preference, every family in half precision: on the GPU, with few waits for it."""

import pytest
import steps
import tiny_qwen
import torch
from pretend import counted
from pretend.device import NAME
from steps import METHODS

from splatgen.models.budget import LoadOptions
from splatgen.rewards import load_reward

ALL = [("sds", "weighted"), ("sdi", "psd"), ("vsd", "none")]
FAMILIES = {  # the second of two versions need not do it all
    "sd15": ALL[2:],
    "sd21": ALL[:1],
    "sdxl": ALL,
    "mvdream": ALL[2:],
    "deepfloyd": ALL[1:],
    "sd3": ALL[1:],
    "sd35": ALL[:1],
}
SCORES = ("sds", "csd", "sdi", "ism", "vsd")
GSPLAT = 2  # its inversion of the cameras looks for errors, and it reads how long its tile lists are


def run(given):
    """One step, which was not skipped, and how often it waited."""
    models, scene = steps.start(given)
    with counted() as waits:
        seen = steps.step(given, models, scene)
    assert not float(seen.failed)
    assert all(p.is_cuda and torch.isfinite(p).all() for p in scene.params.values())
    return seen, waits


def check_waits(waits, score, preference):
    """gsplat's; whether a copy's loss and a negative's gradient are whole; how many ask a copy's network."""
    asked = score == "vsd" and preference == "weighted"
    most = GSPLAT + (score == "vsd") + (preference == "psd") + asked
    assert torch.cuda.get_device_name() != NAME or waits.total() <= most, waits


@pytest.mark.parametrize("preference", METHODS)
@pytest.mark.parametrize("score", SCORES)
def test_every_score_goes_with_every_preference_and_waits_no_more_than_it_must(score, preference):
    seen, waits = run(steps.config(score=score, preference=preference))
    check_waits(waits, score, preference)
    row = seen.values()
    assert row["guidance/model_calls"] > 0
    assert row["time/model_ms"] > 0


ASKED = 1  # how many candidates are predicted again
BESIDE = {  # what a run may have besides: settings, and how often these wait
    "nfsd": ({"score": "nfsd"}, ASKED),
    "bridge": (
        {
            "prior": "sd15",
            "score": "bridge",
            "bridge": {"quality": "sharp", "flaws": "blurred", "start": 0.0},
        },
        0,
    ),
    "flow": ({"score": "sdi", "sdi": {"reverse": 3, "renoise": False}}, ASKED),
    "scales": ({"guidance": {"scale_end": 2.0, "null_scale": (1.0, 0.5), "clip": (0.5, 0.1)}}, 0),
    "dmd": ({"guidance": {"weighting": "dmd", "times": "shared", "shift": 3.0}}, 0),
    "penalties": ({"regularise": {"tv": 0.1, "depth_tv": 0.1, "normal_tv": 0.1, "axes": 0.1}}, 0),
    "views": (
        {"views": {"count": 2, "size": [16], "elevation_law": "mixed", "background": "white-or-black"}},
        0,
    ),
    "world": ({"guidance": {"noise": "world", "noise_renewals": 150.0}}, None),  # it says that it waits
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_a_run_may_have_besides(name):
    more, waits = BESIDE[name]
    seen, counts = run(steps.config(**{"preference": "weighted", **more}))
    assert torch.isfinite(seen.found.value).all()
    if waits is not None and torch.cuda.get_device_name() == NAME:
        assert counts.total() <= GSPLAT + waits, counts


@pytest.mark.parametrize("preference", ["weighted", "psd"])
def test_published_models_wait_no_more(preference):
    four = {"views": {"count": 4, "size": [16]}}
    check_waits(run(steps.config("sdxl", "sds", preference, **four))[1], "sds", preference)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_works_in_half_precision(family):
    for score, preference in FAMILIES[family]:
        given = steps.config(family, score, preference)
        models, scene = steps.start(given)
        network = getattr(models.prior, "unet", None) or models.prior.transformer
        assert network.dtype == (torch.bfloat16 if family in ("sd3", "sd35") else torch.float16)
        assert not float(steps.step(given, models, scene).failed)


def test_convolutions_in_half_precision_are_channels_last():
    models, _ = steps.start(steps.config("sd15"))
    assert models.prior.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_look_ahead_does_not_wait_either():
    more = {"weighted": {"candidates": 2, "lookahead": 4, "stop": 1.0}, "guidance": {"t_max": [0.9, 0.9]}}
    check_waits(run(steps.config("toybox-mini", "sds", "weighted", **more))[1], "sds", "weighted")


def test_a_logged_row_is_of_events_in_the_queue():
    seen, _ = run(steps.config())
    assert set(seen.ms) == {"render", "model", "backward", "update"}
    assert all(value >= 0 for value in seen.ms.values())


@pytest.mark.parametrize(("name", "write"), [("vqa", tiny_qwen.write_vqa), ("hpsv3", tiny_qwen.write_hpsv3)])
def test_language_models_score_on_the_gpu(tmp_path, name, write):
    write(tmp_path / name)
    how = LoadOptions(device="cuda", precision="float16", weights=str(tmp_path), checkpointing=True)
    reward = load_reward(name, how)
    images = torch.rand(2, 3, 56, 84, device="cuda", requires_grad=True)
    reward(images, ["a red cube", "a cat"]).sum().backward()
    assert torch.isfinite(images.grad).all()
    assert images.grad.abs().max() > 0
