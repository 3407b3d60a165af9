"""Scores and preferences: noises, baselines, and how candidates are merged."""

import pytest
import torch

from splatgen.preferences import PREFERENCES, NoPreference
from splatgen.rng import rng
from splatgen.scores import SCORES, SDS


def draw(x, step=0, k=0):
    return SDS().noise(x, torch.full((len(x),), 0.5), k, rng(3, step, "noise"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_is_standard_normal_like_x(dtype):
    x = torch.full((8, 3, 32, 32), 7.0, dtype=dtype)
    noise = draw(x)
    assert noise.shape == x.shape
    assert noise.dtype == dtype
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert (noise**4).mean() == pytest.approx(3, abs=0.25)


def test_the_noise_depends_on_the_generator_and_not_on_x():
    x = torch.zeros(2, 3, 8, 8)
    assert torch.equal(draw(x), draw(x + 1))
    assert not torch.equal(draw(x), draw(x, step=1))


def test_candidates_of_one_generator_differ():
    x, generator = torch.zeros(2, 3, 8, 8), rng(0, 0, "noise")
    t = torch.full((2,), 0.5)
    first, second = (SDS().noise(x, t, k, generator) for k in range(2))
    assert not torch.equal(first, second)


def test_sds_subtracts_the_noise_itself():
    noise = torch.randn(2, 3, 4, 4, generator=rng(0, 0, "x"))
    assert torch.equal(SDS().baseline(noise), noise)


def test_no_preference_takes_its_only_candidate():
    residuals = torch.randn(1, 2, 3, 4, 4, generator=rng(0, 0, "x"))
    assert NoPreference().candidates == 1
    assert torch.equal(NoPreference().combine(residuals), residuals[0])


@pytest.mark.parametrize("table", [SCORES, PREFERENCES])
def test_everything_in_the_tables_can_be_made(table):
    for make in table.values():
        make()
