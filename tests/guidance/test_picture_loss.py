"""L1 and SSIM against their definitions, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from splatgen.guidance.picture_loss import C1, C2, picture_loss, ssim, window


def images(seed: int, size: int = 14) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_window_is_a_gaussian_that_comes_to_one() -> None:
    w = window(11)
    assert float(w.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(w[5, 5] / w[5, 8]) == pytest.approx(math.exp(0.5 * (3 / 1.5) ** 2), rel=1e-12)
    assert float(w[2, 3] / w[5, 5]) == pytest.approx(math.exp(-0.5 * (9 + 4) / 1.5**2), rel=1e-12)


def test_ssim_is_its_definition_at_every_pixel() -> None:
    """Wang et al. 2004, eq. 13, with weighted sums written out."""
    a, b = images(0), images(1)
    found, w = ssim(a, b), window(11)
    assert found.shape == (2, 3, 4, 4)
    for n, c, y, x in ((0, 0, 0, 0), (1, 2, 3, 1), (0, 1, 2, 3)):
        p, q = a[n, c, y : y + 11, x : x + 11], b[n, c, y : y + 11, x : x + 11]
        mean_p, mean_q = (w * p).sum(), (w * q).sum()
        var_p, var_q = (w * (p - mean_p) ** 2).sum(), (w * (q - mean_q) ** 2).sum()
        both = (w * (p - mean_p) * (q - mean_q)).sum()
        expected = ((2 * mean_p * mean_q + C1) * (2 * both + C2)) / (
            (mean_p**2 + mean_q**2 + C1) * (var_p + var_q + C2)
        )
        torch.testing.assert_close(found[n, c, y, x], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_loss_is_both_by_their_shares_and_falls_to_zero(share: float) -> None:
    a, b = images(2), images(3)
    expected = (1 - share) * (a - b).abs().mean() + share * (1 - ssim(a, b).mean())
    torch.testing.assert_close(picture_loss(a, b, share), expected)
    assert float(picture_loss(a, a, share)) == pytest.approx(0.0, abs=1e-12)


def test_small_images_take_a_small_window() -> None:
    assert ssim(images(0, 8), images(1, 8)).shape == (2, 3, 1, 1)
