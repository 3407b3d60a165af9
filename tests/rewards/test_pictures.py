"""Pictures for rewards against PIL, whose filter the published code uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from splatgen.rewards.pictures import CLIP_MEAN, CLIP_STD, cropped, normalised, padded, resized
from splatgen.runs.rng import rng

SIDE = 56
SIZES = [(56, 56), (112, 112), (300, 400), (401, 300), (64, 33), (20, 31), (13, 13), (57, 56), (128, 57)]
LEVEL = 1 / 255


def noise(height, width):
    """The worst case for a filter that overshoots: 8-bit noise with flat black and white parts."""
    picture = torch.randint(0, 256, (height, width, 3), generator=rng(0, 0, f"{height}x{width}"))
    picture[: height // 4] = 0
    picture[:, : width // 4] = 255
    return picture.to(torch.uint8)


def smooth(height, width):
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return (255 * torch.stack([x, y, (x + y) / 2], dim=-1)).round().to(torch.uint8)


def tensor(picture):
    return picture.permute(2, 0, 1)[None] / 255


def by_pil(picture, height, width):
    """PIL's bicubic in 8 bits: [1, 3, height, width] in 0..1.

    Rows before columns. One call of Pillow 13 takes columns first where that is less work (a portrait made
    smaller), which older ones do not; the order tells on noise only.
    """
    rows = Image.fromarray(picture.numpy()).resize((width, len(picture)), Image.Resampling.BICUBIC)
    found = rows.resize((width, height), Image.Resampling.BICUBIC)
    return tensor(torch.from_numpy(np.array(found)))


def by_pil_in_floats(picture, height, width):
    channels = [
        np.array(Image.fromarray(channel).resize((width, height), Image.Resampling.BICUBIC))
        for channel in tensor(picture)[0].numpy()
    ]
    return torch.from_numpy(np.stack(channels))[None]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("draw", [noise, smooth])
def test_resizing_is_pils_up_to_its_rounding(draw, size):
    """PIL rounds after each of its two passes; measured: 1.05 levels at most, 0.3 on average."""
    picture = draw(*size)
    difference = (resized(tensor(picture), 40, 47) - by_pil(picture, 40, 47)).abs()
    assert difference.max() < 1.2 * LEVEL
    assert difference.mean() < 0.35 * LEVEL


@pytest.mark.parametrize("size", SIZES)
def test_padding_is_pils_filter_on_floats_with_zeros_around(size):
    picture = noise(*size)
    height, width = (round(SIDE * length / max(size)) for length in size)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    wanted = torch.zeros(1, 3, SIDE, SIDE)
    wanted[..., top : top + height, left : left + width] = by_pil_in_floats(picture, height, width)
    torch.testing.assert_close(padded(tensor(picture), SIDE), wanted, atol=1e-5, rtol=0)


def test_padding_keeps_what_the_filter_overshoots_as_the_package_does_and_cropping_does_not():
    edge = torch.zeros(1, 3, 2 * SIDE, 2 * SIDE)
    edge[..., SIDE + 1 :] = 1.0
    assert padded(edge, SIDE).min() < -0.02
    assert padded(edge, SIDE).max() > 1.02
    assert cropped(edge, SIDE).min() == 0.0
    assert cropped(edge, SIDE).max() == 1.0


@pytest.mark.parametrize("size", SIZES)
def test_cropping_takes_the_centre_of_the_resized_picture(size):
    picture = smooth(*size)
    height, width = (int(SIDE * length / min(size)) for length in size)
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    wanted = by_pil(picture, height, width)[..., top : top + SIDE, left : left + SIDE]
    assert (cropped(tensor(picture), SIDE) - wanted).abs().max() < 1.6 * LEVEL


@settings(max_examples=40)
@given(st.integers(1, 90), st.integers(1, 90))
def test_every_size_becomes_a_square_within_its_range(height, width):
    picture = tensor(noise(height, width))
    for framed in (cropped(picture, SIDE), padded(picture, SIDE)):
        assert framed.shape == (1, 3, SIDE, SIDE)
        assert framed.isfinite().all()
    assert cropped(picture, SIDE).min() >= 0.0
    assert cropped(picture, SIDE).max() <= 1.0


@pytest.mark.parametrize("framed", [cropped, padded])
def test_a_picture_of_the_right_size_is_left_alone(framed):
    picture = tensor(noise(SIDE, SIDE))
    assert torch.equal(framed(picture, SIDE), picture)


@pytest.mark.parametrize("framed", [cropped, padded])
@pytest.mark.parametrize("size", [(30, 45), (9, 9), (40, 17)])
def test_the_gradient_is_the_filters(framed, size):
    picture = (0.3 + 0.4 * tensor(smooth(*size))).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: framed(x, 12), picture, fast_mode=True)


def test_normalising_uses_clips_numbers_by_channel():
    one = normalised(torch.tensor(CLIP_MEAN)[None, :, None, None] + torch.zeros(1, 3, 2, 2))
    torch.testing.assert_close(one, torch.zeros(1, 3, 2, 2))
    step = normalised(torch.ones(1, 3, 1, 1)) - normalised(torch.zeros(1, 3, 1, 1))
    torch.testing.assert_close(step[0, :, 0, 0], 1 / torch.tensor(CLIP_STD))
