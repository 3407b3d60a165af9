"""Every score with every preference, every family in half precision: on the GPU, with few waits for it."""

import pytest
import steps
import torch
from pretend import counted
from pretend.device import NAME
from steps import METHODS

pretended = pytest.mark.skipif(torch.cuda.get_device_name() != NAME, reason="counts on the pretended device")
SCORES = ("sds", "csd", "sdi", "ism", "vsd")
GSPLAT = 2  # its inversion of the cameras looks for errors, and it reads how long its tile lists are


def run(given, count=2):
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


@pytest.mark.parametrize(("score", "preference"), [("sds", "weighted"), ("sdi", "psd"), ("vsd", "none")])
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl", "mvdream"])
def test_every_family_works_in_half_precision(family, score, preference):
    given = steps.config(family, score, preference)
    models, scene = steps.start(given)
    weights = models.prior.unet.conv_in.weight
    assert weights.dtype == torch.float16
    assert weights.is_contiguous(memory_format=torch.channels_last)
    assert not float(steps.step(given, models, scene).failed)


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
@pytest.mark.parametrize("prior", ["toybox-mini", "sdxl"])
def test_between_rows_a_step_waits_no_more_than_it_must(prior, score, preference, most):
    given = steps.config(prior, score, preference, views={"count": 4, "size": [16]})
    models, scene = steps.start(given)
    steps.step(given, models, scene)
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
