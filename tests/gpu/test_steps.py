"""Every score with every preference, every family in half precision: on the GPU, with few waits for it."""

import pytest
import steps
import torch
from pretend import counted
from pretend.device import NAME
from steps import METHODS

pretended = pytest.mark.skipif(torch.cuda.get_device_name() != NAME, reason="counts on the pretended device")
FAMILIES = dict.fromkeys(("sd15", "sd21", "sdxl", "mvdream", "deepfloyd"), torch.float16)
FAMILIES |= dict.fromkeys(("sd3", "sd35"), torch.bfloat16)
SCORES = ("sds", "csd", "sdi", "ism", "vsd")
PUBLISHED = {("sds", "weighted"), ("sds", "psd"), ("vsd", "none")}
GSPLAT = 2  # its inversion of the cameras looks for errors, and it reads how long its tile lists are


def run(given, count=1):
    """Some steps; the last one's result, none of which was skipped."""
    models, scene = steps.start(given)
    for _ in range(count):
        seen = steps.step(given, models, scene)
        assert not float(seen.failed)
    assert all(p.is_cuda and torch.isfinite(p).all() for p in scene.params.values())
    return seen


@pytest.mark.parametrize("preference", METHODS)
@pytest.mark.parametrize("score", SCORES)
def test_every_score_goes_with_every_preference(score, preference):
    row = run(steps.config(score=score, preference=preference)).values()
    assert row["guidance/model_calls"] > 0
    assert row["time/model_ms"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_works_in_half_precision(family):
    kinds = [("vsd", "weighted")] if family == "mvdream" else [("sdi", "psd"), ("vsd", "weighted")]
    for score, preference in kinds:
        given = steps.config(family, score, preference)
        models, scene = steps.start(given)
        network = getattr(models.prior, "unet", None) or models.prior.transformer
        assert network.dtype == FAMILIES[family]
        assert not float(steps.step(given, models, scene).failed)


def test_convolutions_in_half_precision_are_channels_last():
    models, _ = steps.start(steps.config("sd15"))
    assert models.prior.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@pretended
@pytest.mark.parametrize(
    ("score", "preference", "most"),
    [
        ("sds", "none", GSPLAT),
        ("csd", "weighted", GSPLAT),
        ("sds", "weighted", GSPLAT),
        ("sds", "dpo", GSPLAT),
        ("sdi", "none", GSPLAT),
        ("ism", "none", GSPLAT),
        ("sds", "psd", GSPLAT + 1),  # whether the gradient of the negative is whole
        ("vsd", "none", GSPLAT + 1),  # whether the copy's loss is
        ("vsd", "weighted", GSPLAT + 2),  # and how many candidates it is asked about
    ],
)
def test_between_rows_a_step_waits_no_more_than_it_must(score, preference, most):
    prior = "sdxl" if (score, preference) in PUBLISHED else "toybox-mini"
    given = steps.config(prior, score, preference, views={"count": 4, "size": [16]})
    models, scene = steps.start(given)
    with counted() as waits:
        steps.step(given, models, scene)
    assert waits.total() <= most, waits


@pretended
def test_a_look_ahead_does_not_wait_either():
    more = {"weighted": {"candidates": 2, "lookahead": 4, "stop": 1.0}, "guidance": {"t_max": [0.9, 0.9]}}
    given = steps.config("toybox-mini", "sds", "weighted", **more)
    models, scene = steps.start(given)
    with counted() as waits:
        steps.step(given, models, scene)
    assert waits.total() <= GSPLAT, waits


def test_a_logged_row_is_of_events_in_the_queue():
    seen = run(steps.config(), count=1)
    assert set(seen.ms) == {"render", "model", "backward", "update"}
    assert all(value >= 0 for value in seen.ms.values())
